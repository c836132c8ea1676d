"""Scores that follow from KL and agreement token by token: quantiles, by position, in dialogue.

A mean hides a few tokens that go wrong altogether, which is where answers turn; llama.cpp prints the same quantiles.
Means are over documents of each document's mean over its tokens, and so are their standard errors; quantiles are over
all tokens. Bands of positions end at 15, 63, 255, ...: what is n tokens behind the beginning has n before it.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from pipeline.evaluation.references import DIALOGUE, HELD_OUT, LONG

QUANTILES = {"median": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
GROWTH = 4  # times as many positions in a band as in the one before
MEASURES = {"kl": "kl", "top1": "same"}  # score: column


def scores(tokens: pd.DataFrame) -> dict[str, float]:
    """Flat scores, each mean with its `.stderr` where it is over more than one document.

    kl, top1 and their details are of the held-out text; long.* of the long one; dialogue.* of the answers of dialogues,
    with .turn1 and .turn2 of the first and the second. dialogue.divergence: tokens of an answer before the first at
    which the most likely token is not the teacher's, all of them where there is none: how far greedy text stays the
    teacher's. Its median is over answers; dialogue.divergence.never is the share of answers that are never left.

    Args:
        tokens: as `agreement` makes them.
    """
    parts = {str(text): part for text, part in tokens.groupby("text", sort=False)}
    known: dict[str, float] = {}
    if HELD_OUT in parts:
        kl = parts[HELD_OUT]["kl"].to_numpy(np.float64)
        known |= {"kl.stderr": 0.0, "top1.stderr": 0.0} | _means(parts[HELD_OUT]) | _at(parts[HELD_OUT])
        known |= {f"kl.{name}": float(np.quantile(kl, share)) for name, share in QUANTILES.items()}
    if LONG in parts:
        known |= _means(parts[LONG], "long.") | _at(parts[LONG], "long.")
    return known | (_of_dialogues(parts[DIALOGUE]) if DIALOGUE in parts else {})


def bands(longest: int) -> Iterator[tuple[int, int]]:
    """The first and the last position of each band, up to the one that holds the longest."""
    first, end = 1, GROWTH**2
    while first <= longest:
        yield first, end - 1
        first, end = end, GROWTH * end


def divergence(answers: pd.DataFrame) -> pd.DataFrame:
    """How far each answer is the teacher's: columns document, turn, tokens (before the first other one) and left.

    Args:
        answers: rows of dialogues, a token each.
    """
    rows = []
    for (document, turn), part in answers.groupby(["document", "turn"]):
        same = part.sort_values("position")["same"].to_numpy(bool)
        kept = len(same) if same.all() else int(same.argmin())
        rows.append({"document": document, "turn": turn, "tokens": kept, "left": kept < len(same)})
    return pd.DataFrame(rows)


def _of_dialogues(answers: pd.DataFrame) -> dict[str, float]:
    known = _means(answers, "dialogue.")
    for turn, part in answers.groupby("turn"):
        known |= _means(part, "dialogue.", f".turn{turn}")
    kept = divergence(answers)
    by_dialogue = kept.groupby("document")["tokens"].mean().to_numpy()
    return known | {
        **_of_documents("dialogue.divergence", by_dialogue),
        "dialogue.divergence.median": float(kept["tokens"].median()),
        "dialogue.divergence.never": float((~kept["left"]).mean()),
    }


def _at(part: pd.DataFrame, before: str = "") -> dict[str, float]:
    """KL by bands of positions."""
    known: dict[str, float] = {}
    for first, end in bands(int(part["position"].max())):
        band = part[part["position"].between(first, end)]
        if len(band):
            known |= _of_documents(f"{before}kl.at.{end}", _by_document(band, "kl"))
    return known


def _means(part: pd.DataFrame, before: str = "", behind: str = "") -> dict[str, float]:
    """KL and agreement, `before` and `behind` around their names."""
    measures = {f"{before}{score}{behind}": _by_document(part, column) for score, column in MEASURES.items()}
    return {name: value for score, means in measures.items() for name, value in _of_documents(score, means).items()}


def _by_document(part: pd.DataFrame, column: str) -> np.ndarray:
    return part[column].astype(np.float64).groupby(part["document"]).mean().to_numpy()


def _of_documents(name: str, values: np.ndarray) -> dict[str, float]:
    """A mean over documents, and its standard error where there are two or more."""
    mean = {name: float(values.mean())}
    return mean | ({f"{name}.stderr": float(values.std(ddof=1)) / math.sqrt(len(values))} if len(values) > 1 else {})
