"""Two versions compared item by item and document by document, and what the differences show.

Accuracy by McNemar's exact test on the items that exactly one of the two answers correctly. Perplexity, KL and top-1
agreement by a paired bootstrap over documents, whose tails are too short where the documents are few: where a paired
t-test is less sure, its p-value stands. All comparisons that an audit makes are one family: their p-values are
corrected by Holm's method, so that among any number of comparisons of versions that do not differ, a difference is
shown in one of twenty audits at most. The items are what is sampled: a verdict is about these two models on text and
questions of this kind, not about what another seed would have given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.bench.items import Items

LEVEL = 0.05
RESAMPLES = 10_000
NORMAL = float(stats.norm.ppf(0.975))  # 2.5 % of the normal distribution lie beyond
BETTER, WORSE, SAME = "better", "worse", "no difference shown"
HIGHER_IS_BETTER = {"log_perplexity": False, "kl": False, "top1": True, "accuracy": True}
Column = tuple[list[tuple[int, str]], np.ndarray]  # place and hash of each document or item, and their values [n]


@dataclass(frozen=True)
class Comparison:
    """One measure of two versions.

    Attributes:
        measure: log_perplexity, kl (nats a token), top1, accuracy, or accuracy.{task} (shares).
        pairs: items or documents that both were scored on.
        before, after: means over them.
        low, high: 95 % interval of the difference, not corrected.
        p: that the difference is chance, not corrected. corrected: by Holm, over all of an audit.
        verdict: better, worse or no difference shown, by the corrected p.
    """

    measure: str
    pairs: int
    before: float
    after: float
    low: float
    high: float
    p: float
    corrected: float = math.nan
    verdict: str = ""

    @property
    def difference(self) -> float:
        """Mean after less mean before."""
        return self.after - self.before


@dataclass(frozen=True)
class Scored:
    """What a variant scored: its documents by measure, its answers (1: correct) by task."""

    documents: dict[str, Column]
    answers: dict[str, Column]

    @classmethod
    def of(cls, items: Items) -> "Scored":
        """From the tables that evaluate keeps."""
        return cls(
            _columns(items.documents, "measure", "document", "value"),
            _columns(items.answers, "task", "item", "correct"),
        )

    @property
    def measures(self) -> int:
        """How many comparisons it can give, at most."""
        return len(self.documents) + len(self.answers) + bool(self.answers)


def compare(before: Scored, after: Scored, resamples: int = RESAMPLES) -> list[Comparison]:
    """All measures that two versions have documents or items in common for, verdicts still to be given by `judged`.

    Pairs are rows of the same measure or task whose place and content agree; what the other has not is left out.
    """
    documents, answers = _paired(before.documents, after.documents), _paired(before.answers, after.answers)
    found = [bootstrap(measure, *values, resamples) for measure, values in documents.items()]
    if answers:
        found.append(_accuracy("accuracy", *(np.concatenate(values) for values in zip(*answers.values(), strict=True))))
    return found + [_accuracy(f"accuracy.{task}", *answers[task]) for task in sorted(answers)]


def _columns(table: pd.DataFrame, group: str, place: str, value: str) -> dict[str, Column]:
    return {
        str(name): (list(zip(part[place], part["hash"], strict=True)), part[value].to_numpy(dtype=float))
        for name, part in table.groupby(group, sort=False)
    }


def _paired(before: dict[str, Column], after: dict[str, Column]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The values of the rows that both have, by measure or task; nothing of one without any."""
    found = {}
    for name in before:
        (rows, one), (others, other) = before[name], after.get(name, ([], np.empty(0)))
        if rows != others:
            place = {row: i for i, row in enumerate(others)}
            shared = [i for i, row in enumerate(rows) if row in place]
            one, other = one[shared], other[[place[rows[i]] for i in shared]]
        if len(one):
            found[name] = one, other
    return found


def judged(found: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of an audit with corrected p-values and verdicts, in their order."""
    corrected = holm([each.p for each in found])
    return [
        replace(each, corrected=p, verdict=SAME if p >= LEVEL else _direction(each))
        for each, p in zip(found, corrected, strict=True)
    ]


def bootstrap(measure: str, before: np.ndarray, after: np.ndarray, resamples: int) -> Comparison:
    """The mean difference of paired values [n], its percentile interval, and twice the smaller tail beyond nothing.

    The interval is of RESAMPLES; where none of them lies beyond nothing, p is of all `resamples`, and at least
    2 / (resamples + 1). Every measure of the same number of pairs sees the same ones. Student's p stands where it is
    larger.
    """
    apart, n = after - before, len(after)
    weights = _resampled(n, max(resamples, RESAMPLES))
    means = weights[:RESAMPLES] @ apart
    low, high = np.quantile(means, [0.025, 0.975])
    if _tail(means) == 0:
        means = weights @ apart
    p = max(min(1.0, 2 * (_tail(means) + 1) / (len(means) + 1)), _student(apart))
    return Comparison(measure, n, float(before.mean()), float(after.mean()), float(low), float(high), p)


def _student(apart: np.ndarray) -> float:
    """Two-sided p-value of a paired t-test; one difference alone says nothing, and equal ones leave no doubt."""
    if len(apart) < 2:
        return 1.0
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
    return float(2 * stats.t.sf(abs(float(apart.mean())) / error, len(apart) - 1)) if error else 0.0


def _tail(means: np.ndarray) -> int:
    """How many lie on the other side of nothing than most do, or on it."""
    return min(int((means <= 0).sum()), int((means >= 0).sum()))


@lru_cache(maxsize=4)
def _resampled(n: int, resamples: int) -> np.ndarray:
    """Weights [resamples, n] of n documents drawn with replacement; those of a mean."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples) / n


@cache
def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value: under no difference, each item that one alone answers correctly is a fair coin."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family that may be compared with the level one by one."""
    order = sorted(range(len(p)), key=p.__getitem__)
    found, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        found[i] = largest
    return found


def resamples_for(comparisons: int) -> int:
    """Resamples with which the smallest p-value still passes the correction for so many comparisons."""
    return max(RESAMPLES, math.ceil(4 * comparisons / LEVEL))


def _accuracy(measure: str, before: np.ndarray, after: np.ndarray) -> Comparison:
    """McNemar's test, and the interval of the difference of two paired shares (Wald)."""
    n, apart = len(before), after - before
    gained, lost = int((apart > 0).sum()), int((apart < 0).sum())
    reach = NORMAL * math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0.0)) / n
    mean = float(apart.mean())
    p = mcnemar(gained, lost)
    return Comparison(measure, n, float(before.mean()), float(after.mean()), mean - reach, mean + reach, p)


def _direction(each: Comparison) -> str:
    name = each.measure.partition(".")[0]
    return BETTER if (each.difference > 0) == HIGHER_IS_BETTER[name] else WORSE
