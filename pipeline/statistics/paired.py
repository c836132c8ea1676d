"""What paired scores show: of two models on the same documents or items, and of a share of what a third one loses.

The items are what is sampled: each statement is about these models on text and questions of this kind. What is tested
is always the number that is shown: the mean of documents, or the mean over tasks of each task's mean.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

LEVEL = 0.05
RESAMPLES = 10_000
ENUMERATED = 1_000_000  # sums of signs that are counted one by one; where there are more, they are drawn
ROUNDING = 1e-12  # within which two sums of signs are the same
NORMAL = float(stats.norm.ppf(0.975))  # 2.5 % of the normal distribution lie beyond


def sign_flips(tasks: Sequence[np.ndarray], resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of the mean over tasks of each task's mean difference, by permutation within the tasks.

    Under no difference, each item that one model alone answers correctly is a fair coin. Of one task this is McNemar's
    exact test. Of items in clusters, each cluster is a coin. All outcomes are counted where they are at most
    ENUMERATED; else RESAMPLES are drawn, and where none is as large as the difference, all `resamples`; p is then at
    least 1 / (resamples + 1).

    Args:
        tasks: of each task the paired differences, -1, 0 or 1: float64 [items]; or those of its clusters, as
            `by_cluster` has them.
    """
    shown = abs(math.fsum(float(apart.sum()) / len(apart) for apart in tasks))
    coins: Counter[float] = Counter()  # by what each adds; those of tasks of one size weigh alike
    for apart in tasks:
        coins.update(float(f"{abs(value) / len(apart):.12g}") for value in apart if value)
    if math.prod(count + 1 for count in coins.values()) <= ENUMERATED:
        sums, chances = np.zeros(1), np.ones(1)
        for weight, count in coins.items():
            heads = np.arange(count + 1)
            sums = np.add.outer(sums, (2 * heads - count) * weight).ravel()
            chances = np.multiply.outer(chances, stats.binom.pmf(heads, count, 0.5)).ravel()
        return min(1.0, float(chances[np.abs(sums) >= shown - ROUNDING].sum()))
    beyond = drawn = 0
    for draws in (RESAMPLES, max(resamples, RESAMPLES)):
        if beyond == 0:
            random, sums = np.random.default_rng(0), np.zeros(draws)
            for weight, count in coins.items():
                sums += (2 * random.binomial(count, 0.5, draws) - count) * weight
            beyond, drawn = int((np.abs(sums) >= shown - ROUNDING).sum()), draws
    return (beyond + 1) / (drawn + 1)


def by_cluster(apart: Sequence[np.ndarray], clusters: Sequence[np.ndarray]) -> np.ndarray:
    """Differences of clusters whose mean is the sum over some tasks of each task's mean difference: float64 [clusters].

    Args:
        apart, clusters: of each task the paired differences, float64 [items], and their clusters' numbers, int64
            [items]; what has one number in two tasks is one cluster.
    """
    labels, places = np.unique(np.concatenate(clusters), return_inverse=True)
    sizes = np.repeat([len(values) for values in apart], [len(values) for values in apart])
    return len(labels) * np.bincount(places, np.concatenate(apart) / sizes)


def reach_over_tasks(tasks: Sequence[np.ndarray], count: int | None = None) -> float:
    """Half the 95 % interval of the mean over tasks of each task's mean difference (Wald, tasks apart).

    Args:
        tasks: as `sign_flips` takes them. count: of tasks, where `by_cluster` has put some into one.
    """
    variances = [(float((apart**2).sum()) - float(apart.sum()) ** 2 / len(apart)) / len(apart) ** 2 for apart in tasks]
    return NORMAL * math.sqrt(max(math.fsum(variances), 0.0)) / (count or len(tasks))


def bootstrap(apart: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """The percentile interval of the mean of paired differences [n], and a p-value: twice the smaller tail beyond 0.

    The interval is of RESAMPLES; where none of them lies beyond 0, p is of all `resamples`, and at least
    2 / (resamples + 1). As the tails are too short where the pairs are few, Student's p stands where it is larger.
    """
    weights = resampled(len(apart), max(resamples, RESAMPLES))
    means = weights[:RESAMPLES] @ apart
    low, high = np.quantile(means, [0.025, 0.975])
    if _tail(means) == 0:
        means = weights @ apart
    p = max(min(1.0, 2 * (_tail(means) + 1) / (len(means) + 1)), student(apart))
    return float(low), float(high), p


def student(apart: np.ndarray) -> float:
    """Two-sided p-value of a paired t-test; one difference alone says nothing, and equal ones leave no doubt."""
    if len(apart) < 2:
        return 1.0
    if not apart.std():
        return 0.0 if apart.any() else 1.0
    return float(stats.ttest_1samp(apart, 0.0).pvalue)


def share(part: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of mean(part) / mean(whole), both over the same documents: float64 [n].

    A percentile bootstrap over the documents, which are drawn in pairs. Its tails are too short where the documents are
    few, so an end is moved out to that of Fieller's interval (1954, J. R. Stat. Soc. B 16) where that is wider.

    Raises:
        ValueError: the whole is not above 0 by a t-test at 5 %, so that its share has no bounded interval.
    """
    n, (a, b) = len(whole), (float(part.mean()), float(whole.mean()))
    if b <= 0 or n < 2 or student(whole) >= LEVEL:
        raise ValueError(f"the whole, {b:.3g} over {n} documents, is not above 0 beyond its error")
    t = float(stats.t.ppf(0.975, n - 1))
    (aa, ab), (_, bb) = t**2 * np.cov(part, whole) / n
    # All ratios r with (a - r b)^2 <= t^2 var(a - r b): between the roots of square r^2 - 2 middle r + rest.
    square, middle, rest = b * b - bb, a * b - ab, a * a - aa
    root = math.sqrt(max(middle * middle - square * rest, 0.0))
    weights = resampled(n, RESAMPLES)
    parts, wholes = weights @ part, weights @ whole
    ratios = np.divide(parts, wholes, out=np.copysign(np.inf, parts), where=wholes > 0)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    ends = [float(end) for end in (low, high) if math.isfinite(end)]
    return min((middle - root) / square, *ends), max((middle + root) / square, *ends)


@lru_cache(maxsize=4)
def resampled(n: int, resamples: int) -> np.ndarray:
    """Weights [resamples, n] of n documents drawn with replacement; those of a mean. Always the same ones."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples) / n


def _tail(means: np.ndarray) -> int:
    """How many lie on the other side of nothing than most do, or on it."""
    return min(int((means <= 0).sum()), int((means >= 0).sum()))
