"""How many paired items a margin needs: so that a student without any loss is shown within it."""

import math

from scipy import special
from statsmodels.stats.power import normal_sample_size_one_tail

from pipeline.statistics.paired import LEVEL

POWER = 0.8


def items_needed(flips: float, margin: float, level: float = LEVEL, power: float = POWER) -> int:
    """Items for a margin on the difference of two accuracies, before anything is measured.

    By the normal approximation: an item's difference has variance flips - margin^2 at a loss of the margin, and `flips`
    at none (Connor 1987, Biometrics 43:207, with the hypotheses exchanged). The score test of 0/1 scores needs more
    where flips are hardly more than the margin: at 5 % flips 4 % more for 1.3 points, 18 % more for 3.

    Args:
        flips: share of the items that one of the two alone answers correctly, at least the margin, at most 1.
        margin: share of the items. Of a relative margin: times the teacher's accuracy.

    Raises:
        ValueError: flips, margin, level or power out of range.
    """
    refuse(margin, level, power)
    if not margin <= flips <= 1:
        raise ValueError(f"flips: {flips:g} is not between the margin, {margin:g}, and 1; as many flip as are lost")
    return math.ceil(items_for(margin, flips - margin**2, flips, level, power))


def items_for(effect: float, null_variance: float, variance: float, level: float, power: float) -> float:
    """Items of which a mean `effect` is shown above 0, by the variance of one item at a mean of 0 and at `effect`."""
    spreads = math.sqrt(null_variance), math.sqrt(variance)
    return float(normal_sample_size_one_tail(effect, power, level, std_null=spreads[0], std_alternative=spreads[1]))


def groups_for(effect: float, variance: float, level: float, power: float) -> float:
    """Likewise by Student's t, of items or groups with this variance each (Guenther 1981, Am. Stat. 35:243)."""
    return max(items_for(effect, variance, variance, level, power) + float(special.ndtri(level)) ** 2 / 2, 2.0)


def refuse(margin: float, level: float, power: float) -> None:
    """Raise a ValueError that names all of the three that are out of range."""
    problems = []
    if not 0 < margin < 1:
        problems.append(f"margin: {margin:g} is not between 0 and 1; 0.02 is 2 %")
    if not 0 < level < 0.5:
        problems.append(f"level: {level:g} is not between 0 and 0.5; 0.05 is usual")
    if not level < power < 1:
        problems.append(f"power: {power:g} is not between the level and 1; 0.8 is usual")
    if problems:
        raise ValueError("; ".join(problems))
