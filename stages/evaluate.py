"""evaluate: score the teacher or an exported folder, reloaded as anyone would load it."""

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pipeline.artifacts import contract, progress
from pipeline.evaluation import (
    agreement,
    detail,
    generated,
    harness,
    items,
    prompts,
    provenance,
    selection,
    text,
    writing,
)
from pipeline.evaluation.references import References
from pipeline.evaluation.scores import of_answers
from pipeline.export.formats import load_exported
from pipeline.export.sizes import stored_bytes, stored_weights
from pipeline.knobs import params
from pipeline.models import context, float_type, head, saved
from stages import run


def work() -> str:
    args = run.begin("evaluate", "teacher", "references", "model", "out", "items")
    loaded = params.load()
    knobs = float_type.settled(loaded.evaluate)
    variant = Path(args.out).stem
    folder = knobs.benchmarks if knobs.source == "folder" else None
    tasks = selection.selected(knobs.groups, knobs.tasks, folder, knobs.limit, knobs.items)
    prose = text.read_text(knobs.text, knobs.benchmarks)
    facts = _facts(args)

    tokenizer = saved.load_tokenizer(args.teacher)
    told = prompts.instructions(loaded.seed, knobs.instructions, tokenizer)
    references = References.load(args.references)
    model, teacher = _model_and_teacher(args, knobs.dtype)
    longest = told.longest(knobs.instruction_tokens)
    asked_for = {"evaluate.instruction_tokens, with the instruction before them": longest}
    if problems := prompts.too_long(context.context_length(model), asked_for):
        raise ValueError("\n  ".join(problems))
    windows = text.windows(prose, tokenizer, knobs.windows, knobs.window)
    with progress.bar(f"evaluate {variant}: text", windows.numel() + references.size, " tok") as bar:
        scores, measured = text.perplexity(model, windows, lambda: bar.update(knobs.window))
        compared = agreement.agreement(model, teacher, references, bar.update)
    followed, written = _written(model, tokenizer, references.facts, told, knobs.instruction_tokens, variant)
    with ExitStack() as shown:
        answered, asked = harness.answers(
            model,
            tokenizer,
            tasks,
            folder,
            knobs.limit,
            knobs.batch,
            Path("runs/datasets") / variant,
            lambda count: shown.enter_context(progress.bar(f"evaluate {variant}: items", count, " answer")).update,
            knobs.items,
            generated.way_of(model, references.facts["way"]),
        )
    measured += agreement.by_document(compared, references)
    answers, wrote = items.answers(answered + followed), items.written(written)
    items.Items(answers, items.documents(measured), compared, wrote).save(args.items, {"dtype": knobs.dtype})
    read = {
        "teacher": contract.fingerprint(args.teacher),
        "text": text.text_sha256(prose),
        "windows": provenance.of_tokens(windows.numpy()),
        "held_out": references.facts["held_out"],
        "references": contract.fingerprint(args.references),
        **asked,
    }
    scores |= detail.scores(compared) | generated.of_written(wrote) | of_answers(answers)
    scores |= sizes(args.model, facts)
    contract.write_scores(Path(args.out), {name: float(value) for name, value in scores.items()}, read)
    return variant


def _facts(args: Namespace) -> dict[str, Any]:
    """What the folder that is scored says of itself.

    Raises:
        ValueError: it, or the teacher's, is not sound.
    """
    teacher = contract.reading(args.teacher, contract.TEACHER)
    return teacher if args.model == args.teacher else contract.reading(args.model, contract.INT4)


def _model_and_teacher(args: Namespace, dtype: str) -> tuple[PreTrainedModel, head.Head]:
    """The model to score, and the teacher's head: no more is needed of a teacher that is not scored."""
    teacher = saved.load_model(args.teacher, dtype)
    if args.model == args.teacher:
        return teacher, head.of(teacher)
    its_head = head.of(teacher)
    del teacher
    return load_exported(args.model, dtype), its_head


def _written(
    model: PreTrainedModel, tokenizer: Any, facts: dict[str, Any], told: prompts.Prompts, limit: int, variant: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a variant writes to instructions, as `generated.judged`. facts: of the references."""
    if not told.said:
        return [], []
    way = generated.way_of(model, facts["way"])
    with progress.bar(f"evaluate {variant}: written", told.steps(limit), " tok") as bar:
        answers = writing.write(model, way, told.said, limit, facts["ends"], bar.update)
    return generated.judged(told.instructions, answers, tokenizer)


def sizes(folder: str | Path, facts: dict) -> dict[str, float]:
    """Bytes of the weights on disk, and bits: of the file by a weight of the teacher, and of the quantized linears."""
    stored = stored_bytes(folder)
    return {
        "weight_bytes": stored,
        "bits_per_weight": 8 * stored / (facts.get("teacher_weights") or stored_weights(folder)),
        "bits_per_quantized_weight": facts.get("bits_per_quantized_weight", 32.0),
    }


if __name__ == "__main__":
    run.main("evaluate", work)
