"""Whether a student's loss is shown to be within a margin of its teacher, item by item.

"Within 2 %" of a point estimate is mostly noise at the sizes of benchmarks. Here it is a test, with three verdicts:

- within: a loss of the margin or more is refused by a one-sided test;
- beyond: a loss of the margin or less is refused, likewise;
- not shown: neither, and how many items a student without any loss would need.

Tested is the mean over paired items of student - (1 - margin) x teacher, or of student - teacher + margin, by Student's
t with errors clustered where items come in groups (Miller 2024, arXiv 2411.00640). Of scores of 0 and 1 a score test
(`paired_proportions`) must show it, too: where few answers flip, or none, a t-test alone is too sure. A verdict comes
only where the teacher is above chance; else nothing can be lost, and it is "no signal".

The error rates are those of one look at items set out beforehand; to add items until a verdict changes is another test.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pipeline.statistics import paired_proportions
from pipeline.statistics.clustered import Mean, mean
from pipeline.statistics.paired import LEVEL
from pipeline.statistics.paired_proportions import Pairs
from pipeline.statistics.paired_scores import Scores
from pipeline.statistics.sample_size import POWER, groups_for, items_for, refuse

MARGIN = 0.02
WITHIN, BEYOND, NOT_SHOWN, NO_SIGNAL = "within", "beyond", "not shown", "no signal"


@dataclass(frozen=True)
class Verdict:
    """What the paired items of a teacher and a student show.

    Attributes:
        verdict: within, beyond, not shown or no signal.
        items: pairs. groups: clusters of them, or as many as items.
        teacher, student: their mean scores.
        loss: of a relative margin, as a share of the teacher's mean (nan where that is 0); of an absolute one, the
            difference of the means. Below 0 the student is better. loss_error: its standard error.
        adjusted: the loss as a share of what the teacher has above chance; nan where it has nothing. adjusted_error.
        p_signal: that the teacher is not above chance.
        p_within: that the loss is the margin or more. p_beyond: that it is the margin or less. Not corrected.
        needed: items in all with which a student without any loss is shown within, at the power asked for and the
            variance seen; None but for "not shown".
    """

    verdict: str
    items: int
    groups: int
    teacher: float
    student: float
    loss: float
    loss_error: float
    adjusted: float
    adjusted_error: float
    p_signal: float
    p_within: float
    p_beyond: float
    needed: int | None = None

    @property
    def more(self) -> int | None:
        """Items to add, of "not shown". 0: a student without loss would likely have passed, so something is lost."""
        return None if self.needed is None else max(self.needed - self.items, 0)


@dataclass(frozen=True)
class Hypothesis:
    """That the mean of student - ratio x teacher + shift is 0: a loss of exactly the margin."""

    ratio: float
    shift: float

    def of_items(self, scores: Scores) -> np.ndarray:
        """What is tested, float64 [items]."""
        return scores.student - self.ratio * scores.teacher + self.shift

    def without_loss(self, teacher: float) -> float:
        """Its mean where the student scores what the teacher does."""
        return (1 - self.ratio) * teacher + self.shift

    def null_variance(self, pairs: Pairs) -> float:
        """Variance of an item of 0/1 scores if it holds."""
        if self.shift:
            return paired_proportions.variance_at_difference(pairs, -self.shift)
        return paired_proportions.variance_at_ratio(pairs, self.ratio)

    def variance(self, pairs: Pairs) -> float:
        """Variance of an item of 0/1 scores as seen."""
        weights = np.array([pairs.both, pairs.first_only, pairs.second_only, pairs.neither]) / pairs.items
        values = np.array([1 - self.ratio, -self.ratio, 1.0, 0.0])
        return float(weights @ (values - weights @ values) ** 2)


def relative(
    teacher: ArrayLike,
    student: ArrayLike,
    margin: float = MARGIN,
    chance: ArrayLike = 0.0,
    clusters: ArrayLike | None = None,
    level: float = LEVEL,
    power: float = POWER,
) -> Verdict:
    """The verdict on a loss of a share of the teacher's mean.

    Args:
        teacher, student: scores of the same items in the same order, more is better: float or bool [items]. Accuracy,
            probability of the right choice, skill.
        margin: the share, between 0 and 1.
        chance: what guessing scores, 0 to 1: of all items, or float [items].
        clusters: labels of the items' groups [items]; None: each stands alone. Below some 20 groups a t-test with
            clustered errors is a little too sure.
        level: chance of a wrong "within", "beyond" or signal, each. power: what `needed` asks for.

    Raises:
        ValueError: other lengths, fewer than two items or clusters, a score that is not finite, a missing label, a
            margin, level or power out of range.
    """
    refuse(margin, level, power)
    scores = Scores.of(teacher, student, chance, clusters)
    loss = _lost(scores.teacher, scores.student, scores.clusters)
    return _judged(scores, Hypothesis(1 - margin, 0.0), loss, level, power)


def absolute(
    teacher: ArrayLike,
    student: ArrayLike,
    margin: float,
    chance: ArrayLike = 0.0,
    clusters: ArrayLike | None = None,
    level: float = LEVEL,
    power: float = POWER,
) -> Verdict:
    """The verdict on a loss of so much of the score; else as `relative`. Of 0/1 scores the score test is Tango's."""
    refuse(margin, level, power)
    scores = Scores.of(teacher, student, chance, clusters)
    loss = mean(scores.teacher - scores.student, scores.clusters)
    return _judged(scores, Hypothesis(1.0, margin), loss, level, power)


def _judged(scores: Scores, hypothesis: Hypothesis, loss: Mean, level: float, power: float) -> Verdict:
    test = mean(hypothesis.of_items(scores), scores.clusters)
    within, beyond = test.above(), test.below()
    if scores.right_or_wrong:
        variance = hypothesis.null_variance(Pairs.of(scores.teacher, scores.student)) * _design_effect(scores)
        within = max(within, paired_proportions.above(test.value, variance, len(scores.teacher)))
        beyond = max(beyond, paired_proportions.above(-test.value, variance, len(scores.teacher)))
    signal = _signal(scores)
    adjusted = _lost(scores.teacher - scores.chance, scores.student - scores.chance, scores.clusters)
    verdict = NO_SIGNAL if signal >= level else WITHIN if within < level else BEYOND if beyond < level else NOT_SHOWN
    return Verdict(
        verdict=verdict,
        items=len(scores.teacher),
        groups=test.groups,
        teacher=float(scores.teacher.mean()),
        student=float(scores.student.mean()),
        loss=loss.value,
        loss_error=loss.error,
        adjusted=adjusted.value,
        adjusted_error=adjusted.error,
        p_signal=signal,
        p_within=within,
        p_beyond=beyond,
        needed=_needed(scores, hypothesis, test, level, power) if verdict == NOT_SHOWN else None,
    )


def _signal(scores: Scores) -> float:
    """P-value of a teacher no better than chance: by t, and of 0/1 scores by their exact distribution, too."""
    p = mean(scores.teacher - scores.chance, scores.clusters).above()
    if not np.isin(scores.teacher, (0, 1)).all():
        return p
    right = scores.teacher.sum()
    if (scores.chance == scores.chance[0]).all():
        return max(p, float(stats.binom.sf(right - 1, len(scores.teacher), scores.chance[0])))
    return max(p, float(stats.poisson_binom(scores.chance).sf(right - 1)))


def _lost(teacher: np.ndarray, student: np.ndarray, clusters: np.ndarray) -> Mean:
    """1 - mean(student) / mean(teacher), its error by the delta method; nan where the teacher has nothing to lose."""
    whole = float(teacher.mean())
    if whole <= 0:
        return Mean(math.nan, math.nan, int(clusters.max()) + 1)
    kept = float(student.mean()) / whole
    residuals = mean(student - kept * teacher, clusters)
    return Mean(1 - kept, residuals.error / whole, residuals.groups)


def _design_effect(scores: Scores) -> float:
    """How many times the variance of single items that of groups is, 1 or more, by the answers that flip.

    As if one more group had flipped as a whole: where none has flipped, nothing tells that they do not flip together.
    """
    apart = scores.student - scores.teacher
    sums = np.bincount(scores.clusters, apart)
    size = float((np.bincount(scores.clusters) ** 2).sum()) / len(apart)
    return max((float(sums @ sums) + size**2) / (float(apart @ apart) + size), 1.0)


def _needed(scores: Scores, hypothesis: Hypothesis, test: Mean, level: float, power: float) -> int:
    """Items that both tests need. A group counts as a whole: as many items in each as there are now."""
    items = len(scores.teacher)
    effect = hypothesis.without_loss(float(scores.teacher.mean()))
    needed = groups_for(effect, test.error**2 * test.groups, level, power) * items / test.groups
    if scores.right_or_wrong:
        even = Pairs.of(scores.teacher, scores.student).balanced()
        effect = hypothesis.without_loss((even.both + even.first_only) / even.items)
        by_score = items_for(effect, hypothesis.null_variance(even), hypothesis.variance(even), level, power)
        needed = max(needed, by_score * _design_effect(scores))
    return math.ceil(needed)
