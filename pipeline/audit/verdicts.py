"""Two versions compared item by item and document by document, and what the differences show.

Each verdict is about the number that the scores show. Accuracy, a mean over tasks of each task's mean, by a permutation
test within the tasks on the items that exactly one of the two answers correctly; of one task this is McNemar's exact
test. Items that come as one, in a cluster or clean and attacked, are one coin. Perplexity (by its logarithm), KL and
top-1 agreement, means over documents, by a paired bootstrap over these, whose tails are too short where the documents
are few: where a paired t-test is less sure, its p-value stands. All comparisons that an audit makes are one family:
their p-values are corrected by Holm's method, so that among any number of comparisons of versions that do not differ, a
difference is shown in one of twenty audits at most. The items are what is sampled: a verdict is about these two models
on text and questions of this kind, not about what another seed would have given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.evaluation.items import Items
from pipeline.evaluation.tasks import family, in_writing
from pipeline.statistics import corrections, paired
from pipeline.statistics.paired import LEVEL, RESAMPLES

BETTER, WORSE, SAME = "better", "worse", "no difference shown"
HIGHER_IS_BETTER = {"log_perplexity": False, "kl": False, "top1": True, "accuracy": True}


@dataclass(frozen=True)
class Column:
    """A measure's documents, or a task's items, in their order.

    Attributes:
        rows: place and hash of each. values: float64 [n], of items whether they are right. clusters: int64 [n], what
            comes as one. chosen: int64 [n], the answers; of documents all the same.
    """

    rows: list[tuple[int, str]]
    values: np.ndarray
    clusters: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: Sequence[int]) -> "Column":
        """Some of them, in this order."""
        rows = [self.rows[i] for i in places]
        return Column(rows, self.values[places], self.clusters[places], self.chosen[places])


Pair = tuple[Column, Column]  # before and after, the same rows


@dataclass(frozen=True)
class Comparison:
    """One measure of two versions.

    Attributes:
        measure: log_perplexity, kl (nats a token), top1, accuracy, or accuracy.{task} (shares).
        pairs: items or documents that both were scored on. of: as many as the scores are over.
        before, after: means over the pairs; the scores themselves where `pairs` is `of`.
        low, high: 95 % interval of the difference, not corrected.
        p: that the difference is chance, not corrected. corrected: by Holm, over all of an audit.
        verdict: better, worse or no difference shown, by the corrected p.
        gained, lost, changed: of answers, how many turned right, turned wrong, and are others, wrong ones included.
    """

    measure: str
    pairs: int
    before: float
    after: float
    low: float
    high: float
    p: float
    of: int = 0
    corrected: float = math.nan
    verdict: str = ""
    gained: int | None = None
    lost: int | None = None
    changed: int | None = None

    @property
    def difference(self) -> float:
        """Mean after less mean before."""
        return self.after - self.before

    @property
    def whole(self) -> bool:
        """Whether it is about all that the scores are over, so about the scores themselves."""
        return self.pairs == self.of


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

    What is answered in writing is no part of the mean accuracy, as in the scores.

    Pairs are rows of the same measure or task whose place and content agree; what the other has not is left out.
    """
    documents, answers = _paired(before.documents, after.documents), _paired(before.answers, after.answers)
    comparisons = [
        bootstrap(measure, one.values, other.values, resamples) for measure, (one, other) in documents.items()
    ]
    if chosen := {task: columns for task, columns in answers.items() if not in_writing(task)}:
        comparisons.append(_accuracy("accuracy", chosen, resamples))
    comparisons += [_accuracy(f"accuracy.{task}", {task: answers[task]}, resamples) for task in sorted(answers)]
    return [replace(comparison, of=_asked(comparison.measure, before, after)) for comparison in comparisons]


def _asked(measure: str, before: Scored, after: Scored) -> int:
    """How many items or documents the larger of two scores of a measure is over."""

    def count(scored: Scored) -> int:
        columns = scored.documents if measure in scored.documents else scored.answers
        names = {measure, measure.partition(".")[2]}
        if measure == "accuracy":
            names = {name for name in columns if not in_writing(name)}
        return sum(len(column) for name, column in columns.items() if name in names)

    return max(count(before), count(after))


def _columns(table: pd.DataFrame, group: str, place: str, value: str) -> dict[str, Column]:
    columns = {}
    for name, part in table.groupby(group, sort=False):
        own = part[place].to_numpy()
        clusters, chosen = (part[key].to_numpy() if key in part else own for key in ("cluster", "prediction"))
        rows = list(zip(part[place], part["hash"], strict=True))
        columns[str(name)] = Column(rows, part[value].to_numpy(dtype=float), clusters, chosen)
    return columns


def _paired(before: dict[str, Column], after: dict[str, Column]) -> dict[str, Pair]:
    """The rows that both have, by measure or task; nothing of one without any."""
    pairs = {}
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        if one.rows != other.rows:
            place = {row: i for i, row in enumerate(other.rows)}
            shared = [i for i, row in enumerate(one.rows) if row in place]
            one, other = one.at(shared), other.at([place[one.rows[i]] for i in shared])
        if len(one):
            pairs[name] = one, other
    return {name: pairs[name] for name in before if name in pairs}


def judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of an audit with corrected p-values and verdicts, in their order."""
    corrected = corrections.holm([comparison.p for comparison in comparisons])
    return [
        replace(comparison, corrected=p, verdict=SAME if p >= LEVEL else _direction(comparison))
        for comparison, p in zip(comparisons, corrected, strict=True)
    ]


def bootstrap(measure: str, before: np.ndarray, after: np.ndarray, resamples: int) -> Comparison:
    """The mean difference of paired values [n], as `paired.bootstrap` judges it.

    Every measure of the same number of pairs sees the same resamples.
    """
    low, high, p = paired.bootstrap(after - before, resamples)
    return Comparison(measure, len(after), float(before.mean()), float(after.mean()), low, high, p)


def resamples_for(comparisons: int) -> int:
    """Resamples with which the smallest p-value still passes the correction for so many comparisons."""
    return max(RESAMPLES, math.ceil(4 * comparisons / LEVEL))


def _accuracy(measure: str, tasks: dict[str, Pair], resamples: int) -> Comparison:
    """The mean over tasks of each task's mean, and the interval of its difference; of each task before and after."""
    before, after = (math.fsum(float(pair[i].values.mean()) for pair in tasks.values()) / len(tasks) for i in (0, 1))
    families: dict[str, list[Pair]] = {}
    for task in sorted(tasks):
        families.setdefault(family(task), []).append(tasks[task])
    apart = [
        paired.by_cluster([other.values - one.values for one, other in pairs], [one.clusters for one, _ in pairs])
        for pairs in families.values()
    ]
    reach, p = paired.reach_over_tasks(apart, len(tasks)), paired.sign_flips(apart, resamples)
    mean, count = after - before, sum(len(one) for one, _ in tasks.values())
    turned = np.concatenate([other.values - one.values for one, other in tasks.values()])
    changed = sum(int((one.chosen != other.chosen).sum()) for one, other in tasks.values())
    comparison = Comparison(measure, count, before, after, mean - reach, mean + reach, p)
    return replace(comparison, gained=int((turned > 0).sum()), lost=int((turned < 0).sum()), changed=changed)


def _direction(comparison: Comparison) -> str:
    name = comparison.measure.partition(".")[0]
    return BETTER if (comparison.difference > 0) == HIGHER_IS_BETTER[name] else WORSE
