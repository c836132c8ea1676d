"""What a model writes itself: whether it follows instructions, loops, and comes to an end.

Teacher forcing does not see loops, as each token stands behind a text that is sound. Answers are greedy.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from pipeline.corpus import decoding
from pipeline.evaluation import items, writing
from pipeline.evaluation.tasks import INSTRUCTIONS

GRAM = 4  # tokens, of which one that was there before is a repetition


def way_of(model: PreTrainedModel, teachers: str) -> str:
    """In which of decoding.WAYS a variant writes: as its teacher does, but with its own attention where that quantizes
    keys and values, which the fastest way leaves out.

    A variant is not asked by `decoding.choose`: inputs that fall to another code by rounding are no other way.
    """
    fastest, own, _ = decoding.WAYS
    plain = model.config._attn_implementation in ("eager", "sdpa", None)
    return own if teachers == fastest and not plain else teachers


def judged(
    asked: Sequence[Any], answers: Sequence[writing.Script], tokenizer: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a model's answers, for `items.answers` and for `items.written`.

    Args:
        asked: instructions: prompt, kind, and followed(answer). answers: to them, in that order.
    """
    rows, written = [], []
    for item, (instruction, script) in enumerate(zip(asked, answers, strict=True)):
        tokens = script.answer(1)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        place = {"item": item, "hash": items.content_hash(instruction.prompt.encode())}
        rows.append(_row(place, instruction.kind, bool(instruction.followed(text))))
        about = {"tokens": len(tokens), "repetition": repetition(tokens), "ended": script.ended[0]}
        written.append({**place, "text": text, **about})
    return rows, written


def of_written(written: pd.DataFrame) -> dict[str, float]:
    """generated.repetition, the mean share of an answer's 4-grams that it had before, and generated.ended, the share of
    answers that end before the limit, each with its standard error over answers; nothing of fewer than two."""
    if len(written) < 2:
        return {}
    return {
        name: value
        for measure in ("repetition", "ended")
        for name, value in _mean(f"generated.{measure}", written[measure].astype(float).tolist()).items()
    }


def repetition(tokens: Sequence[int]) -> float:
    """The share of a text's 4-grams that stood in it before; 0 where it has none."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _row(place: dict[str, Any], kind: str, followed: bool) -> dict[str, Any]:
    """An instruction's row for `items.answers`: nothing is chosen from, so it has no log-likelihoods."""
    of_group = {"group": "emergent", "part": "instruction following", "level": kind}
    return {
        "task": INSTRUCTIONS,
        **place,
        **of_group,
        "prediction": int(followed),
        "correct": followed,
        "log_likelihoods": [],
    }


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of two or more values, and its standard error."""
    return {name: statistics.fmean(values), f"{name}.stderr": statistics.stdev(values) / math.sqrt(len(values))}
