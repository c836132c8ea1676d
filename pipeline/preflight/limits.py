"""The knobs of all stages, held against the model at hand before the first of them works.

Each stage refuses what it cannot do itself, but some of them hours after the first one began. A check makes nothing, so
of these knobs dvc.yaml gives the stage `teacher` only those whose limit the stage that uses them does not see.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.calibration.plan import plan
from pipeline.corpus import conversation
from pipeline.distill.freeze import frozen_rows
from pipeline.evaluation import prompts, selection
from pipeline.evaluation.tasks import preamble, room
from pipeline.export import refusals
from pipeline.export.gguf import model as gguf_model
from pipeline.export.qnn import grids as qnn_grids
from pipeline.knobs.checking_sections import Evaluate
from pipeline.knobs.freezing import AUTO
from pipeline.knobs.params import Params
from pipeline.models import forward, layout, vocabulary
from pipeline.models.context import context_length
from pipeline.runtimes.limits import SIMULATED

PROBE_TOKENS = 32  # of a text that shows which linears a text reaches
ALTERNATIVES = (  # of which a request holds one
    *("sol1", "sol2", "option1", "option2", "endings", "choices", "sentence_good", "sentence_bad"),
    *("mc1_targets", "mc2_targets", "multiple_choice_targets"),
)
UNSAID = ("answer", "instruction_id_list", "kwargs")  # what no request says: by it an answer is judged


def check(model: PreTrainedModel, tokenizer: Any, knobs: Params) -> None:
    """Raises:
    ValueError: knobs ask for what the model or its tokenizer does not have: all of them, a line each.
    """
    problems = [
        *_lengths(model, knobs),
        *_tasks(model, tokenizer, knobs.evaluate),
        *_tokens(model, tokenizer, knobs),
        *_prompts(model, tokenizer, knobs),
        *_linears(model, knobs),
        *_uncalled(model, knobs),
        *_formats(model, tokenizer, knobs),
    ]
    if problems:
        lines = "\n  ".join(dict.fromkeys(problems))
        raise ValueError(f"{type(model).__name__} and the knobs in params.yaml do not fit:\n  {lines}")


def warning(model: PreTrainedModel) -> str:
    """What a whole run would come to, hours later, though a part of it is sound; empty where there is nothing.

    A model whose logits are more than its head times its last hidden states can be quantized, but not distilled.
    """
    try:
        forward.head_weight(model)
    except ValueError as error:
        return f"targets and distill will refuse this model; `dvc repro export@ptq` quantizes it without them: {error}"
    return ""


def _lengths(model: PreTrainedModel, knobs: Params) -> Iterator[str]:
    most = context_length(model)
    if most is None:
        return
    for name, value in (
        ("synthesize.length", knobs.synthesize.length),
        ("evaluate.window", knobs.evaluate.window),
        ("references.long", knobs.references.long),
        ("prove.prompt and prove.tokens", knobs.prove.prompt + knobs.prove.tokens),
    ):
        if value > most:
            yield f"{name}: {value} tokens are more than the {most} of the model's context; lower it"


def _tasks(model: PreTrainedModel, tokenizer: Any, knobs: Evaluate) -> Iterator[str]:
    """What evaluate would refuse hours later: of the tasks' names and rows, and items beyond the model's context."""
    folder, most = knobs.benchmarks if knobs.source == "folder" else None, context_length(model)
    try:
        names = selection.selected(knobs.groups, knobs.tasks, folder, knobs.limit, knobs.items)
    except ValueError as error:
        yield str(error)
        return
    for name in names if most is not None else ():
        rows = selection.rows_of(name, folder, knobs.items)  # none of the hub's, which evaluate sees
        tokens = longest_request(rows, tokenizer, preamble(name)) + room(name) if rows else 0
        if most is not None and tokens > most:
            yield (
                f"evaluate.tasks: the longest item of {name} has about {tokens} tokens, the model's context {most}; "
                "leave the task out, or its long items"
            )


def longest_request(rows: Sequence[dict[str, Any]], tokenizer: Any, before: str = "") -> int:
    """About the tokens of the longest request of some rows: a row's texts, of its alternatives the longest.

    Args:
        before: what every request begins with.
    """
    longest = ""
    for row in rows:
        texts = {key: list(_texts(value)) for key, value in row.items() if key not in UNSAID}
        alternatives = [text for key in ALTERNATIVES for text in texts.pop(key, [])]
        context = [text for field_texts in texts.values() for text in field_texts]
        asked = " ".join(["Question: Answer:", *context, max(alternatives, key=len, default="")])
        longest = max(longest, asked, key=len)
    return len(tokenizer(before + longest, add_special_tokens=False, verbose=False)["input_ids"])


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value of a row, and in what it holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _tokens(model: PreTrainedModel, tokenizer: Any, knobs: Params) -> Iterator[str]:
    rows, ends = model.get_input_embeddings().weight.shape[0], vocabulary.end_tokens(model)
    beyond = [end for end in ends if end >= rows]
    if beyond:
        yield f"the end-of-sequence tokens {beyond} of its generation config are beyond the embedding's {rows} rows"
    if knobs.synthesize.stop_at_eos and not ends:
        yield "synthesize.stop_at_eos: the model has no end-of-sequence token; set it to false"
    if not set(vocabulary.vocabulary(tokenizer)) - set(vocabulary.special_tokens(tokenizer)):
        yield "its tokenizer has special tokens alone, so no text can begin"
    if knobs.synthesize.chat:
        try:
            opening = conversation.opening(tokenizer, ends)
        except ValueError as error:
            yield str(error)
            return
        if opening is not None and len(opening.tokens) >= knobs.synthesize.length:
            yield (
                f"synthesize.length: {knobs.synthesize.length} tokens leave no place behind the {len(opening.tokens)} "
                "that open a conversation; make it longer, or set synthesize.chat to 0"
            )


def _prompts(model: PreTrainedModel, tokenizer: Any, knobs: Params) -> Iterator[str]:
    """What of the dialogues and the instructions the chat template or the model's context does not hold."""
    talk, evaluate = knobs.references, knobs.evaluate
    try:
        dialogues = prompts.dialogues(knobs.seed, talk.dialogues, tokenizer)
        instructions = prompts.instructions(knobs.seed, evaluate.instructions, tokenizer)
    except ValueError as error:
        yield str(error)
        return
    lengths = {
        "references.tokens, with what is said before the answers": dialogues.longest(talk.tokens),
        "evaluate.instruction_tokens, with the instruction before them": instructions.longest(
            evaluate.instruction_tokens
        ),
    }
    yield from prompts.too_long(context_length(model), lengths)


def _linears(model: PreTrainedModel, knobs: Params) -> Iterator[str]:
    """What calibrate and distill would refuse."""
    checks: list[Callable[[], object]] = [lambda: plan(model, knobs.scheme)]
    if knobs.distill.freeze != AUTO:
        checks.append(lambda: frozen_rows(knobs.distill.freeze, layout.linears(model)))
    for attempt in checks:
        try:
            attempt()
        except ValueError as error:
            yield str(error)


def _formats(model: PreTrainedModel, tokenizer: Any, knobs: Params) -> Iterator[str]:
    """What the formats of the export cannot hold."""
    try:
        planned = plan(model, knobs.scheme)
    except ValueError:
        return  # for _linears to name
    grids = {linear.name: weights for linear, (weights, _) in planned.items() if weights.bits}
    inputs = {linear.name: activations for linear, (_, activations) in planned.items() if activations.bits}
    signals = refusals.Signals(inputs, knobs.scheme.kv_cache)
    for name in knobs.export.formats:
        for problem in dict.fromkeys(refusals.problems(name, model, tokenizer, grids, signals)):
            yield f"export.formats: {name} cannot hold this model: {problem}; or leave {name} out"
    if "gguf" in knobs.export.formats and model.config.model_type in gguf_model.ARCHITECTURES:
        most = gguf_model.context(model.config)
        longest = max(knobs.synthesize.length, knobs.prove.prompt + knobs.prove.tokens)
        if longest > most:
            yield (
                f"export.formats: llama.cpp sees {most} tokens of this model, prove holds it to texts of {longest}; "
                "lower synthesize.length, prove.prompt or prove.tokens, or leave gguf out"
            )
    if "qnn" in knobs.export.formats:
        yield from _places(model, knobs)


def _places(model: PreTrainedModel, knobs: Params) -> Iterator[str]:
    """Whether the cache of qnn fits the model's context, and holds the text that prove has for it."""
    places = knobs.export.qnn_context
    problem = qnn_grids.too_long(model, places)
    if problem:
        yield problem
    text = min(knobs.synthesize.length, SIMULATED.positions)
    longest = max(text, knobs.prove.prompt + min(knobs.prove.tokens, SIMULATED.tokens))
    if longest > places:
        yield f"export.qnn_context: prove holds it to texts of {longest} tokens, over {places}; raise it"


@torch.no_grad()
def _uncalled(model: PreTrainedModel, knobs: Params) -> Iterator[str]:
    """Linears to quantize that a text calls in no layer, as those of a decoder's attention to an encoder."""
    try:
        planned = plan(model, knobs.scheme)
    except ValueError:
        return  # for _linears to name
    linears = [linear for linear, (weights, _) in planned.items() if weights.bits and linear.layer >= 0]
    called: set[str] = set()
    handles = forward.on_layer_inputs(model, linears, lambda linear, _: called.add(layout.role_names([linear])))
    length = min(PROBE_TOKENS, context_length(model) or PROBE_TOKENS)
    tokens = 7919 * torch.arange(1, length + 1)[None] % len(model.get_input_embeddings().weight)
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    uncalled = [linear for linear in linears if layout.role_names([linear]) not in called]
    if uncalled:
        yield (
            f"scheme: a text calls none of {layout.role_names(uncalled)}; leave them in float, by overrides with "
            "weights: {bits: 0} and activations: {bits: 0}"
        )
