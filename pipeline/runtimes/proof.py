"""The proof of an export: its file holds the trained numbers, and runtimes that open it say what the student says.

A runtime that computes in float32 is held to the student's logits. One that computes in fewer bits cannot be: in text
that was sampled two tokens are often all but equally likely, and the least error changes which of them comes first.
llama.cpp's 8 bits of inputs, put into torch, change 3.5 % of SmolLM2's, as llama.cpp does. It is held to the likeliest
token where that leads, and to a KL; so is a runtime that puts inputs on their grids, where another order of sums ends
on the next number.
"""

import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.export.formats import EXPORT_FORMATS
from pipeline.export.proof import LOGITS_TOLERANCE, check_state
from pipeline.export.sizes import stored_bytes
from pipeline.models import loading, memory
from pipeline.runtimes import strings
from pipeline.runtimes.compare import LEAD, Comparison, compared, of_logits, same_tokens
from pipeline.runtimes.folder_tokenizer import rendered
from pipeline.runtimes.opened import Asked, Opened, listed
from pipeline.runtimes.references import References
from pipeline.runtimes.table import Runtime, runtimes_of

SAME_TOP1 = 0.99  # of the clear positions, least share with the student's likeliest token
MOST_KL = 0.01  # nats a token, from the student that the runtime is held to
SHOWN = 3  # texts that are named


@dataclass
class Proof:
    """Of one folder.

    Attributes:
        numbers: by name, and by the runtime behind it. problems: what falls short, a line each.
        speeds: of each runtime, tokens a second of prompt and decode, threads, and MB of memory that it took.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    speeds: dict[str, dict[str, float]] = field(default_factory=dict)


def prove(folder: Path, format_name: str, against: References, runtimes: Mapping[str, Runtime] | None = None) -> Proof:
    """Read a folder's file, and run it in each runtime that opens it, or in those that are named.

    All numbers are of the same text, or of its beginning, where a runtime has limits. Of a runtime: `kl_` and `top1_`
    to `student` (inputs and KV cache on their grids, as trained), `in_float` (these in float) and `teacher`;
    `top1_clear` (of the one that the runtime is held to, where it leads, a share `clear` of the positions);
    `logit_difference`, a share of the largest, or, where the likeliest tokens alone are told,
    `log_probability_difference` in nats; `same_tokens`, mean and least over the continuations; `same_continuations`, a
    share; `texts` with the same ids.
    """
    proof = Proof({"weight_bytes": float(stored_bytes(folder)), "tensors": float(_tensors(against))})
    proof.problems += [*_other_tensors(folder, format_name, against)]
    if proof.problems:
        return proof  # a runtime may end the process over it
    for name, runtime in (runtimes_of(format_name) if runtimes is None else runtimes).items():
        part = against.within(runtime.limits)
        asked = Asked(part.text.context, _together(part), torch.get_num_threads())
        memory.give_back()
        before = _resident()
        try:
            opened = runtime.open(folder, asked)
            try:
                _run(proof, name, runtime, opened, part)
                proof.speeds[name]["megabytes"] = max(0.0, _resident() - before) / 1e6
            finally:
                opened.close()
        except ValueError as error:
            proof.problems.append(f"{name}: {error}")
        except Exception as error:  # a runtime has classes of its own for what goes wrong in it
            proof.problems.append(f"{name}: {loading.reason(error)}")
    return proof


def _tensors(against: References) -> int:
    return len(against.quantized.codes) + len(against.quantized.floats)


def _together(against: References) -> int:
    return max(len(against.text.tokens), len(against.text.prompts))


def _other_tensors(folder: Path, format_name: str, against: References) -> Iterator[str]:
    """Why what lies in the file is not what was trained."""
    try:
        EXPORT_FORMATS[format_name].check(against.quantized, against.model, folder)
    except ValueError as error:
        yield str(error)
    except Exception as error:  # of a damaged file, readers raise classes of every kind
        yield f"its file cannot be read, it may be truncated: {loading.reason(error)}"


def _run(proof: Proof, name: str, runtime: Runtime, opened: Opened, against: References) -> None:
    """One runtime's numbers, problems and speed."""
    text, quantized = against.text, against.quantized
    _check_fits(opened, against)
    model = getattr(opened, "model", None)
    if isinstance(model, PreTrainedModel):
        check_state(against.model, model, quantized)
    compare = _comparisons(opened, against)
    numbers = dict[str, float]()
    for reference, comparison in compare.items():
        numbers |= {f"{measure}_{reference}": value for measure, value in _agreement(comparison).items()}
    held_to = compare["student" if runtime.on_grids else "in_float"]
    if not held_to.positions:
        raise ValueError("the text has no position to compare")
    numbers |= {"top1_clear": held_to.agreement.top1_clear, "clear": held_to.agreement.clear}
    name_of_difference = "log_probability_difference" if held_to.parts else "logit_difference"
    numbers[name_of_difference] = held_to.difference if held_to.parts else held_to.share
    numbers["positions"] = float(held_to.positions)
    numbers |= _continued(opened, against)
    texts, other = _same_ids(opened, against)
    numbers |= {"texts": float(texts)} if texts else {}
    proof.numbers |= {f"{measure}.{name}": value for measure, value in numbers.items()}
    proof.problems += [f"{name}: {problem}" for problem in [*_short(runtime, held_to), *other]]
    speed = opened.speed(text.tokens[0, : text.context - text.count - 1], text.count)
    proof.speeds[name] = {"prompt": speed.prompt, "decode": speed.decode, "threads": torch.get_num_threads()}


def _comparisons(opened: Opened, against: References) -> dict[str, Comparison]:
    """A runtime's predictions beside each reference; those of one sequence are held at a time."""
    compare = {reference: Comparison() for reference in ("in_float", "student", "teacher")}
    text = against.text
    for row, predictions in zip(range(len(text.tokens)), opened.predictions(text.tokens), strict=True):
        for reference, comparison in compare.items():
            comparison.add(getattr(against, reference)[row], predictions, text.valid[row])
    return compare


def _check_fits(opened: Opened, against: References) -> None:
    """Raises:
    ValueError: the file's vocabulary is another, or its texts are shorter than those that it is held to.
    """
    problems = []
    if opened.vocabulary != against.vocabulary:
        problems.append(f"its vocabulary has {opened.vocabulary} tokens, the teacher's {against.vocabulary}")
    if opened.context is not None and opened.context < against.text.context:
        problems.append(
            f"it is for texts of {opened.context} tokens, and is held to texts of {against.text.context}; lower "
            "synthesize.length or prove.tokens"
        )
    if problems:
        raise ValueError("; ".join(problems))


def _agreement(comparison: Comparison) -> dict[str, float]:
    return {"kl": comparison.agreement.kl, "top1": comparison.agreement.top1}


def _continued(opened: Opened, against: References) -> dict[str, float]:
    """How far its continuations are the student's."""
    text = against.text
    theirs = opened.continuations(text.prompts, text.count)
    pairs = zip(against.continuations, theirs, strict=True)
    same = [same_tokens(ours, other, against.special, text.count) for ours, other in pairs]
    return {
        "same_tokens": statistics.fmean(same),
        "same_tokens_least": float(min(same)),
        "same_continuations": sum(count == text.count for count in same) / len(same),
    }


def _same_ids(opened: Opened, against: References) -> tuple[int, list[str]]:
    """How many texts and conversations have the teacher's ids, and what differs; 0 where it has no tokenizer."""
    tokenizer = against.tokenizer
    names = tokenizer.convert_ids_to_tokens(sorted(against.special))
    texts = strings.texts(names)
    if opened.ids(texts[0]) is None:
        return 0, []
    chats = [_chat(tokenizer, messages) for messages in strings.conversations()]
    wrong_chats = [
        f"it renders a conversation as {theirs!r}, where the teacher's chat template gives {ours!r}"
        for ours, messages in zip(chats, strings.conversations(), strict=True)
        if ours is not None and (theirs := opened.chat(messages)) != ours
    ]
    texts += [chat for chat in chats if chat is not None]
    other = [text for text in texts if opened.ids(text) != listed(tokenizer(text))]
    problems = wrong_chats[:1]
    if other:
        named = ", ".join(repr(text) for text in other[:SHOWN])
        problems.append(
            f"its tokenizer gives other ids than the teacher's for {len(other)} of {len(texts)} texts: {named}"
        )
    return len(texts) - len(other), problems


def _chat(tokenizer: object, messages: list[dict[str, str]]) -> str | None:
    """A conversation as the teacher's template has it; None without one, and of one that the template refuses."""
    try:
        return rendered(tokenizer, messages)
    except Exception:  # what a template raises is its own matter: instructions are not for every model
        return None


def _short(runtime: Runtime, held_to: Comparison) -> Iterator[str]:
    """Where a runtime's predictions fall short of the student's, with inputs as it has them, in float or on grids."""
    agreed = held_to.agreement
    if runtime.exact and not held_to.share <= LOGITS_TOLERANCE:
        yield f"its logits differ from the student's by {held_to.share:.2e} of the largest, over {LOGITS_TOLERANCE}"
    elif not runtime.exact:
        if not agreed.top1_clear >= SAME_TOP1:
            yield (
                f"its likeliest token is the student's at {agreed.top1_clear:.2%} of the positions where that leads by "
                f"{LEAD} nats, under {SAME_TOP1:.0%}"
            )
        if not agreed.kl <= MOST_KL:
            yield f"its KL from the student is {agreed.kl:.3g} nats a token, over {MOST_KL}"


def told(proof: Proof, runtimes: Mapping[str, Runtime]) -> str:
    """What a proof comes to, in a line."""
    if proof.problems:
        return "it falls short"
    said = ["the file holds the trained numbers"]
    for name, runtime in runtimes.items():
        held_to, inputs = ("student", "on grids") if runtime.on_grids else ("in_float", "in float")
        top1, kl = (proof.numbers[f"{measure}_{held_to}.{name}"] for measure in ("top1", "kl"))
        least = "" if f"logit_difference.{name}" in proof.numbers else "at least "
        said.append(
            f"{name}, to the student with inputs {inputs}: the same likeliest token at {top1:.1%} of the positions, KL "
            f"{least}{kl:.2g}"
        )
    return "; ".join(said)


def of_student(against: References) -> dict[str, float]:
    """The student itself on the same text, with inputs and KV cache on their grids and in float."""
    text, numbers = against.text, dict[str, float]()
    for name, logits in (("student", against.student), ("in_float", against.in_float)):
        agreed = _agreement(compared(against.teacher, of_logits(logits), text.valid))
        numbers |= {f"{name}.{measure}_teacher": value for measure, value in agreed.items()}
    agreed = _agreement(compared(against.student, of_logits(against.in_float), text.valid))
    return numbers | {f"in_float.{measure}_student": value for measure, value in agreed.items()}


def _resident() -> float:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0.0
