"""How well a model knows what it knows: over all items with choices, from the probabilities that it gave them.

These are its own: the softmax of its log-likelihoods. What a metric divides by the length of the answers ranks them,
and is no probability: it is nearly the same for all, however sure the model is.

The Brier score of an item is sum_c (p_c - [c is right])^2 over its choices (Brier 1950, Monthly Weather Review 78:1): 0
is sure and right, 2 sure and wrong. It is proper: no other probabilities than the true ones make it smaller on average.

The expected calibration error is sum_b (n_b / n) |share right in b - mean confidence in b| over bins of confidence, the
probability of the chosen answer (Guo et al. 2017, arXiv 1706.04599, eq. 5), here with as many items in each bin (Nguyen
and O'Connor 2015, arXiv 1508.05154). Of few items it is too large, by about what its bins' own errors are.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import special

from pipeline.statistics import clustered

BINS = 10
RESAMPLES = 500  # of the clusters, for the error of the expected calibration error


def scores(answers: pd.DataFrame, family: Callable[[str], str]) -> dict[str, float]:
    """calibration.brier and calibration.ece with .stderr: of the mean over clusters, and by bootstrap of these.

    Args:
        answers: as `items.answers`. family: of a task, by whose name and an item's cluster it is known what errs
            together.

    Returns:
        nothing where no item has choices of which the right one is known.
    """
    known = answers[(answers["log_likelihoods"].map(len) > 1) & (answers["answer"] >= 0)]
    if known.empty:
        return {}
    probabilities = [special.softmax(np.asarray(nats)) for nats in known["log_likelihoods"]]
    labels = known["task"].map(family) + " " + known["cluster"].astype(str)
    clusters = pd.factorize(labels)[0]
    squares = brier(probabilities, known["answer"])
    confidence = np.array([own.max() for own in probabilities])
    right = np.array(
        [float(own.argmax() == answer) for own, answer in zip(probabilities, known["answer"], strict=True)]
    )
    error = clustered.error((squares - squares.mean()) / len(squares), clusters)
    return {
        "calibration.brier": float(squares.mean()),
        "calibration.brier.stderr": error,
        "calibration.ece": expected_error(confidence, right),
        "calibration.ece.stderr": _bootstrapped(confidence, right, clusters),
    }


def brier(probabilities: Sequence[np.ndarray], answers: Iterable[int]) -> np.ndarray:
    """The Brier score of each item, float64 [items], of its choices' probabilities and the right one's index."""
    pairs = zip(probabilities, answers, strict=True)
    return np.array([np.square(p - (np.arange(len(p)) == right)).sum() for p, right in pairs])


def expected_error(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None, bins: int = BINS
) -> float:
    """The expected calibration error of equal-mass bins.

    Args:
        confidence, right: float64 [items], probability of the chosen answer, and 1 where that is right.
        weights: how often each counts; None: once.
    """
    order = np.argsort(confidence, kind="stable")
    counts = np.ones(len(order)) if weights is None else weights[order]
    whole = counts.sum()
    middle = np.cumsum(counts) - counts / 2
    places = np.minimum((middle * bins / whole).astype(int), bins - 1)
    return float(np.abs(np.bincount(places, counts * (right - confidence)[order])).sum() / whole)


def _bootstrapped(confidence: np.ndarray, right: np.ndarray, clusters: np.ndarray) -> float:
    """The standard deviation of the error over clusters drawn with replacement; always the same ones."""
    random, groups = np.random.default_rng(0), int(clusters.max()) + 1
    if groups < 2:
        return math.nan
    draws = (random.multinomial(groups, np.full(groups, 1 / groups)) for _ in range(RESAMPLES))
    return float(np.std([expected_error(confidence, right, drawn[clusters].astype(float)) for drawn in draws], ddof=1))
