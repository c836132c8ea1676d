"""The mean of items that come one by one or in groups, its standard error, and Student's one-sided test of it.

Items of one group (questions on one text, halves of a contrast pair) err together, so what is sampled is groups: the
standard error is the sandwich over groups, as of a regression on a constant with errors clustered (Liang and Zeger
1986, Biometrika 73:13), with the factor groups / (groups - 1). With an item a group it is the common one.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

ROUNDING = 1e-12  # a score nearer to 0 is 0: what float arithmetic leaves of equal ones


@dataclass(frozen=True)
class Mean:
    """A mean over items.

    Attributes:
        value: the mean. error: its standard error, in the same unit.
        groups: how many were sampled: clusters, or items where each stands alone.
    """

    value: float
    error: float
    groups: int

    def above(self) -> float:
        """One-sided p-value of a true mean of 0 or less; equal items leave no doubt."""
        return _tail(-self.value, self.error, self.groups - 1)

    def below(self) -> float:
        """One-sided p-value of a true mean of 0 or more."""
        return _tail(self.value, self.error, self.groups - 1)


def mean(values: np.ndarray, clusters: np.ndarray) -> Mean:
    """The mean of float64 [items], and its error over their clusters: int64 [items], 0 to clusters - 1, at least 2."""
    values = np.where(np.abs(values) < ROUNDING, 0.0, values)
    value = float(values.mean())
    return Mean(value, error((values - value) / len(values), clusters), int(clusters.max()) + 1)


def error(moves: np.ndarray, clusters: np.ndarray) -> float:
    """The standard error of an estimate, from by how much each item moves it (its influence; together 0).

    Args:
        moves: float64 [items]; of a mean, an item's distance from it over the number of items. clusters: as of `mean`.

    Returns:
        nan where there is one cluster alone.
    """
    sums = np.bincount(clusters, moves)
    groups = len(sums)
    if groups < 2:
        return math.nan
    if float(np.abs(moves).max()) * len(moves) < ROUNDING:
        return 0.0
    return math.sqrt(groups / (groups - 1) * float(sums @ sums))


def _tail(value: float, error: float, freedom: int) -> float:
    """Student's chance of a mean as far below 0 as `value`, or farther."""
    if not error:
        return 0.0 if value < 0 else 1.0
    return float(special.stdtr(freedom, value / error))
