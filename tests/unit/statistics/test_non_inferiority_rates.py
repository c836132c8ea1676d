"""How often verdicts are wrong, and how often they come, by simulation: 2,000 draws of answers each.

Answers are drawn as cells of a table: both right, the teacher alone, the student alone, neither.
"""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from pipeline.statistics.clustered import mean
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, WITHIN, Verdict, absolute, relative
from pipeline.statistics.sample_size import items_needed

DRAWS, LEVEL, MARGIN, ACCURACY = 2000, 0.05, 0.02, 0.66
LOSS = MARGIN * ACCURACY
ERROR = 3 * math.sqrt(LEVEL * (1 - LEVEL) / DRAWS)  # three standard errors of a rate of 5 %
RIGHT = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])  # of teacher and student, by cell


def shares(flips: float, loss: float) -> list[float]:
    return [ACCURACY - (flips + loss) / 2, (flips + loss) / 2, (flips - loss) / 2, 1 - ACCURACY - (flips - loss) / 2]


def alone(items: int, flips: float, loss: float, seed: int) -> list[np.ndarray]:
    """Teacher's and student's answers [2, items], of each draw."""
    counts = np.random.default_rng(seed).multinomial(items, shares(flips, loss), DRAWS)
    return [np.repeat(RIGHT, row, axis=1) for row in counts]


def grouped(groups: int, flips: float, loss: float, together: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers [draws, 2, items] and labels [items]; four to a group, a share of the groups all of one cell."""
    random = np.random.default_rng(seed)
    ends = np.cumsum(shares(flips, loss))[:3]
    own, one = (np.searchsorted(ends, random.random((DRAWS, groups, size))) for size in (4, 1))
    cells = np.where(random.random((DRAWS, groups, 1)) < together, one, own).reshape(DRAWS, -1)
    return RIGHT[:, cells].swapaxes(0, 1), np.repeat(np.arange(groups), 4)


def rate(verdicts: list[Verdict], of: str = WITHIN) -> float:
    return sum(verdict.verdict == of for verdict in verdicts) / len(verdicts)


@pytest.mark.parametrize("flips", [0.05, 0.15])
def test_a_loss_of_the_margin_is_called_within_in_5_percent_at_most(flips: float):
    verdicts = [relative(*answers) for answers in alone(1200, flips, LOSS, 1)]
    for of in (WITHIN, BEYOND):
        assert LEVEL / 2 < rate(verdicts, of) <= LEVEL + ERROR


@pytest.mark.parametrize("flips", [0.05, 0.15])
def test_likewise_where_items_come_in_groups(flips: float):
    """300 groups of four, half of them of one kind; as if they stood alone, more of them would be."""
    draws, labels = grouped(300, flips, LOSS, 0.7, 2)
    assert LEVEL / 2 < rate([relative(*answers, clusters=labels) for answers in draws]) <= LEVEL + ERROR
    assert rate([relative(*answers) for answers in draws[:500]]) > 2 * LEVEL


@pytest.mark.parametrize(("items", "by_t"), [(100, 0.2), (220, 0.15), (400, 0.07)])
def test_likewise_where_nothing_flips_but_what_is_lost(items: int, by_t: float):
    """There a t-test alone is wrong up to a quarter of the time: often no flip is seen at all."""
    draws = alone(items, LOSS, LOSS, 3)
    assert rate([relative(*answers) for answers in draws]) <= LEVEL + ERROR
    own = np.arange(items)
    assert np.mean([mean(student - 0.98 * teacher, own).above() < LEVEL for teacher, student in draws]) > by_t


@pytest.mark.parametrize("groups", [100, 300])
def test_likewise_where_groups_are_lost_as_a_whole(groups: int):
    draws, labels = grouped(groups, LOSS, LOSS, 1.0, 4)
    assert rate([relative(*answers, clusters=labels) for answers in draws]) <= LEVEL + ERROR


def test_likewise_of_an_absolute_margin():
    """3 points, of 5 % flips: Tango's test holds, where Student's does not."""
    draws = alone(340, 0.05, 0.03, 5)
    assert LEVEL / 2 < rate([absolute(*answers, 0.03) for answers in draws]) <= LEVEL + ERROR


def test_likewise_of_probabilities():
    random = np.random.default_rng(6)
    teacher = random.beta(2, 1, (DRAWS, 200))
    student = 0.98 * teacher + random.normal(0, 0.1, (DRAWS, 200))
    assert LEVEL / 2 < rate(list(map(relative, teacher, student))) <= LEVEL + ERROR


def test_a_teacher_at_chance_has_a_signal_in_5_percent_at_most():
    teacher = np.random.default_rng(7).random((DRAWS, 300)) < 0.25
    assert 1 - rate([relative(row, row, chance=0.25) for row in teacher], NO_SIGNAL) <= LEVEL + ERROR


@pytest.mark.parametrize(("flips", "items"), [(0.05, 384), (0.15, 384), (0.05, 1744), (0.15, 5239)])
def test_no_loss_passes_and_fails_as_computed(flips: float, items: int):
    """Power by statsmodels; 80 % at the items that the planning table asks for."""
    deviation = math.sqrt(flips - MARGIN * flips + MARGIN**2 * ACCURACY * (1 - ACCURACY))
    power = TTestPower().power(LOSS / deviation, items, LEVEL, alternative="larger")
    shown = rate([relative(*answers) for answers in alone(items, flips, 0.0, 8)])
    assert shown == pytest.approx(power, abs=3 * math.sqrt(power * (1 - power) / DRAWS) + 0.01)
    if items > 384:
        assert items == pytest.approx(items_needed(flips, LOSS), rel=0.02)
        assert power == pytest.approx(0.8, abs=0.01)


def test_with_the_items_that_a_verdict_asks_for_no_loss_passes_as_often_as_it_says():
    """3 points at 5 % flips, where Tango's test needs more than the table says: the median of 200 verdicts."""
    asked = [absolute(*answers, 0.03).needed for answers in alone(200, 0.05, 0.0, 9)[:200]]
    items = int(np.median([needed for needed in asked if needed]))
    assert 1.05 * items_needed(0.05, 0.03) < items < 1.4 * items_needed(0.05, 0.03)
    shown = rate([absolute(*answers, 0.03) for answers in alone(items, 0.05, 0.0, 10)])
    assert shown == pytest.approx(0.8, abs=0.05)


def test_within_2_percent_of_a_point_estimate_is_noise():
    """384 items, 10 % flips: no loss fails one time in five, a loss of 5 % passes one time in eight."""
    for loss, expected in ((0.0, 0.81), (0.05 * ACCURACY, 0.12)):
        draws = alone(384, 0.1, loss, 11)
        passed = np.mean([student.mean() >= 0.98 * teacher.mean() for teacher, student in draws])
        deviation = math.sqrt((0.1 - loss**2) / 384)
        assert passed == pytest.approx(stats.norm.sf((loss - LOSS) / deviation), abs=0.03)
        assert passed == pytest.approx(expected, abs=0.03)
