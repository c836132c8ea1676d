"""Two shares of right answers on the same items, by score tests.

A score test takes the variance that the flips have under the hypothesis, fitted by maximum likelihood, and not that of
the flips seen. So it holds where few answers flip, or none: then a t-test sees next to no variance and is too sure.

- Difference of the shares: Tango 1998, Stat. Med. 17:891, with his interval.
- Ratio of the shares: Tang, Tang and Chan 2003, Stat. Med. 22:1217; Nam and Blackwelder 2002, Stat. Med. 21:689.

statsmodels and scipy have neither: `confint_proportions_2indep` is of independent shares, `mcnemar` of no difference.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

INSIDE = 1e-12  # how far from the estimate the search for an end begins


@dataclass(frozen=True)
class Pairs:
    """How many items both answer correctly, the first alone, the second alone, and neither; shares will do as well."""

    both: float
    first_only: float
    second_only: float
    neither: float

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "Pairs":
        """Counted from scores of 0 and 1: float64 [items] each."""
        both, ones, others = float(first @ second), float(first.sum()), float(second.sum())
        return cls(both, ones - both, others - both, len(first) - ones - others + both)

    @property
    def items(self) -> float:
        """All of them."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """Share of the second less that of the first."""
        return (self.second_only - self.first_only) / self.items

    @property
    def flips(self) -> float:
        """Share of the items that one alone answers correctly."""
        return (self.first_only + self.second_only) / self.items

    def balanced(self) -> "Pairs":
        """As many flips, half of them each way: what would be seen of two models that are equally good."""
        half = (self.first_only + self.second_only) / 2
        return Pairs(self.both, half, half, self.neither)


def variance_at_difference(pairs: Pairs, difference: float) -> float:
    """Variance of an item's second - first, if the shares truly differ by `difference`, fitted to the pairs.

    The chance p that the first alone is right solves 2 n p^2 + b p + c = 0 (Tango's equation for the estimate).
    """
    n = pairs.items
    b = (2 * n - pairs.second_only + pairs.first_only) * difference - pairs.first_only - pairs.second_only
    c = -pairs.first_only * difference * (1 - difference)
    return max(2 * _root(2 * n, b, c) + difference * (1 - difference), 0.0)


def variance_at_ratio(pairs: Pairs, ratio: float) -> float:
    """Variance of an item's second - ratio x first, if the shares truly have this ratio, fitted to the pairs.

    The chance p that the first alone is right solves (1 + ratio) n p^2 + b p + c = 0.
    """
    n, right = pairs.items, pairs.both + pairs.first_only + pairs.second_only
    b = (pairs.both + pairs.first_only) * ratio**2 - (pairs.both + pairs.second_only + 2 * pairs.first_only)
    c = pairs.first_only * (1 - ratio) * right / n
    return max((1 + ratio) * _root((1 + ratio) * n, b, c) + (ratio - 1) * right / n, 0.0)


def above(value: float, variance: float, items: float) -> float:
    """One-sided p-value of a true mean of 0 or less, of a mean and the variance of one item under the hypothesis."""
    return float(special.ndtr(-value * math.sqrt(items / variance))) if variance else 1.0


def interval_of_difference(pairs: Pairs, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's two-sided score interval of the second's share less the first's: within -1 and 1.

    Its lower end at confidence 1 - 2 x level is above -margin where the one-sided test of that margin shows it.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs.items:
        raise ValueError("no pairs: an interval needs at least one item that both answered")
    estimate, n = pairs.difference, pairs.items
    normal = float(special.ndtri((1 + confidence) / 2))

    def beyond(difference: float) -> float:
        return abs(estimate - difference) * math.sqrt(n) - normal * math.sqrt(variance_at_difference(pairs, difference))

    low = -1.0 if estimate <= -1 else float(optimize.brentq(beyond, -1.0, estimate - INSIDE, xtol=INSIDE))
    high = 1.0 if estimate >= 1 else float(optimize.brentq(beyond, estimate + INSIDE, 1.0, xtol=INSIDE))
    return low, high


def _root(a: float, b: float, c: float) -> float:
    """The larger root of a p^2 + b p + c = 0."""
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
