"""Score tests of paired proportions, against published intervals, McNemar's test and a search for the likelihood."""

import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from pipeline.statistics import paired_proportions
from pipeline.statistics.paired_proportions import Pairs

# Tables as published: both, the row alone, the column alone, neither. The interval: row less column, or row / column.
DIFFERENCES = [
    ((4, 9, 3, 16), 0.95, (-0.027, 0.390)),  # Tango 1998
    ((43, 0, 1, 0), 0.90, (-0.096, 0.037)),  # Tango 1998
    ((53, 16, 8, 9), 0.95, (-0.020, 0.207)),  # Agresti and Min 2005, Stat. Med. 24:729
    ((1, 1, 7, 12), 0.95, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014, Stat. Med. 33:2850
    ((59, 6, 16, 80), 0.95, (-0.1240, -0.0054)),  # the same authors' book and R package contingencytables
    ((8, 3, 1, 2), 0.95, (-0.1670, 0.4327)),  # Tang, Li and Tang 2010, Stat. Med. 29:46
    ((7, 25, 2, 68), 0.95, (0.139, 0.321)),  # Chang et al. 2024, J. Appl. Stat. 51:139
]
RATIOS = [
    ((1, 1, 7, 12), 0.95, (0.065, 0.907)),  # Fagerland, Lydersen and Laake 2014
    ((59, 6, 16, 80), 0.95, (0.7476, 0.9876)),  # contingencytables
    ((446, 5, 16, 690), 0.90, (0.958, 0.992)),  # Tang, Tang and Chan 2003
    ((43, 0, 1, 0), 0.90, (0.904, 1.039)),  # Tang, Tang and Chan 2003
]


def pairs_of(table: tuple[int, int, int, int]) -> Pairs:
    both, second_only, first_only, neither = table
    return Pairs(both, first_only, second_only, neither)


@pytest.mark.parametrize(("table", "confidence", "ends"), DIFFERENCES)
def test_tangos_interval_is_the_published_one(table, confidence: float, ends: tuple[float, float]):
    digits = 0.00006 if any(round(end, 3) != end for end in ends) else 0.0006
    assert paired_proportions.interval_of_difference(pairs_of(table), confidence) == pytest.approx(ends, abs=digits)


@pytest.mark.parametrize(("table", "confidence", "ends"), RATIOS)
def test_at_the_ends_of_the_published_interval_of_the_ratio_the_test_is_at_its_level(table, confidence, ends):
    """The ends are rounded: the level lies between the p-values half a digit to either side."""
    pairs = pairs_of(table)
    half = 0.00006 if any(round(end, 3) != end for end in ends) else 0.0006

    def p(ratio: float, sign: int) -> float:
        mean = sign * (pairs.both + pairs.second_only - ratio * (pairs.both + pairs.first_only)) / pairs.items
        return paired_proportions.above(mean, paired_proportions.variance_at_ratio(pairs, ratio), pairs.items)

    for end, sign in zip(ends, (1, -1), strict=True):
        low, high = sorted((p(end - half, sign), p(end + half, sign)))
        assert low <= (1 - confidence) / 2 <= high


@pytest.mark.parametrize("table", [(30, 4, 9, 7), (12, 0, 3, 5), (10, 2, 0, 0), (25, 0, 0, 5)])
@pytest.mark.parametrize("difference", [-0.2, -0.03, 0.1])
def test_the_variance_at_a_difference_is_that_of_the_likeliest_shares(table, difference: float):
    pairs = pairs_of(table)

    def unlikely(first_only: float) -> float:
        shares = first_only, first_only + difference, 1 - 2 * first_only - difference
        counts = pairs.first_only, pairs.second_only, pairs.both + pairs.neither
        return -sum(n * math.log(max(share, 1e-300)) for n, share in zip(counts, shares, strict=True) if n)

    low, high = max(0.0, -difference), (1 - difference) / 2
    fitted = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x
    expected = 2 * fitted + difference - difference**2
    assert paired_proportions.variance_at_difference(pairs, difference) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("table", [(30, 4, 9, 7), (12, 1, 3, 5), (20, 3, 1, 6)])
@pytest.mark.parametrize("ratio", [0.7, 0.98, 1.1])
def test_the_variance_at_a_ratio_is_that_of_the_likeliest_shares(table, ratio: float):
    pairs = pairs_of(table)

    def shares(free: np.ndarray) -> np.ndarray:
        both, first_only = free
        second_only = ratio * (both + first_only) - both
        return np.array([both, first_only, second_only, 1 - both - first_only - second_only])

    def unlikely(free: np.ndarray) -> float:
        counts = np.array([pairs.both, pairs.first_only, pairs.second_only, pairs.neither])
        return -float(counts @ np.log(shares(free))) if (shares(free) > 0).all() else math.inf

    start = np.array([0.4, 0.2 if ratio < 1 else 0.1])
    fitted = optimize.minimize(unlikely, start, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12}).x
    _, first_only, second_only, _ = shares(fitted)
    expected = ratio * (first_only + second_only)
    assert paired_proportions.variance_at_ratio(pairs, ratio) == pytest.approx(expected, abs=1e-5)


def test_a_difference_of_nothing_and_a_ratio_of_one_are_mcnemars_test():
    pairs = Pairs(30, 9, 4, 7)
    theirs = mcnemar([[30, 9], [4, 7]], exact=False, correction=False).pvalue
    for variance in (
        paired_proportions.variance_at_difference(pairs, 0),
        paired_proportions.variance_at_ratio(pairs, 1),
    ):
        assert 2 * paired_proportions.above(-pairs.difference, variance, 50) == pytest.approx(theirs)


@pytest.mark.parametrize("table", [(40, 6, 2, 30), (40, 0, 1, 30), (9, 0, 0, 1), (0, 0, 5, 20)])
def test_at_an_end_of_the_interval_the_one_sided_test_is_at_half_of_what_it_leaves_out(table):
    pairs = pairs_of(table)
    low, high = paired_proportions.interval_of_difference(pairs, 0.9)
    for end, sign in ((low, 1), (high, -1)):
        variance = paired_proportions.variance_at_difference(pairs, end)
        assert paired_proportions.above(sign * (pairs.difference - end), variance, pairs.items) == pytest.approx(0.05)


def test_the_interval_holds_the_difference_as_often_as_it_says():
    """Every outcome of 30 pairs, weighed by its chance; 95 % of it on the whole."""
    n, shares = 30, (0.06, 0.16)
    held = 0.0
    for first_only in range(16):
        for second_only in range(n - first_only + 1):
            rest = n - first_only - second_only
            chance = stats.multinomial.pmf((first_only, second_only, rest), n, (*shares, 1 - sum(shares)))
            if chance > 1e-7:
                low, high = paired_proportions.interval_of_difference(Pairs(rest, first_only, second_only, 0))
                held += chance * (low <= shares[1] - shares[0] <= high)
    assert held == pytest.approx(0.95, abs=0.015)


def test_intervals_at_the_edges():
    """Without a flip z^2 / (n + z^2) to each side; of flips all one way to the end of the scale."""
    z = stats.norm.ppf(0.975) ** 2
    assert paired_proportions.interval_of_difference(Pairs(5, 0, 0, 4)) == pytest.approx((-z / (9 + z), z / (9 + z)))
    assert paired_proportions.interval_of_difference(Pairs(0, 9, 0, 0)) == pytest.approx((-1, (z - 9) / (z + 9)))
    assert paired_proportions.interval_of_difference(Pairs(0, 0, 9, 0)) == pytest.approx(((9 - z) / (9 + z), 1))
    with pytest.raises(ValueError, match="no pairs"):
        paired_proportions.interval_of_difference(Pairs(0, 0, 0, 0))


def test_pairs_are_counted():
    first, second = np.array([1.0, 1, 1, 0, 0, 0, 0]), np.array([1.0, 1, 0, 1, 0, 0, 0])
    pairs = Pairs.of(first, second)
    assert pairs == Pairs(2, 1, 1, 3)
    assert Pairs.of(first, first) == Pairs(3, 0, 0, 4)
    assert Pairs(2, 3, 0, 5).balanced() == Pairs(2, 1.5, 1.5, 5)
    assert Pairs(2, 3, 0, 5).flips == 0.3
