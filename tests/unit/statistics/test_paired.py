"""Statistics of paired scores, against scipy's, by enumeration, and by simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.statistics import paired

ITEM = st.sampled_from([-1.0, 0.0, 1.0])


def by_hand(tasks: list[np.ndarray]) -> float:
    """Every way to turn the signs round, one by one."""
    shown = abs(sum(apart.mean() for apart in tasks))
    means = [
        abs(sum((apart * signs[: len(apart)]).mean() for apart, signs in zip(tasks, cut(turned, tasks), strict=True)))
        for turned in itertools.product((-1, 1), repeat=sum(map(len, tasks)))
    ]
    return float(np.mean([mean >= shown - 1e-9 for mean in means]))


def cut(signs: tuple[int, ...], tasks: list[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([0, *map(len, tasks)])
    return [np.array(signs[start:end]) for start, end in itertools.pairwise(ends)]


@given(st.lists(st.lists(ITEM, min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_permutation_test_counts_every_way_to_turn_the_signs(tasks: list[list[float]]):
    arrays = [np.array(task) for task in tasks]
    assert paired.sign_flips(arrays) == pytest.approx(by_hand(arrays))


def test_the_permutation_test_is_scipys(monkeypatch: pytest.MonkeyPatch):
    """Of one task; and of more, where it draws, it is near what it counts."""
    random = np.random.default_rng(2)
    apart = random.choice([-1.0, 0.0, 0.0, 1.0, 1.0], 40)
    theirs = stats.permutation_test(
        (apart,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert paired.sign_flips([apart]) == pytest.approx(theirs.pvalue, abs=0.01)
    tasks = [apart, random.choice([-1.0, 0.0, 1.0], 90)]
    counted = paired.sign_flips(tasks)
    monkeypatch.setattr(paired, "ENUMERATED", 0)
    assert paired.sign_flips(tasks) == pytest.approx(counted, abs=0.02)
    assert paired.sign_flips(tasks) == paired.sign_flips(tasks)


def test_a_clear_difference_of_many_items_has_the_least_p_that_was_asked_for():
    tasks = [np.where(np.arange(n) % 3 == 0, -1.0, 0.0) for n in (1838, 10042, 1267, 500, 2376, 1172)]
    assert paired.sign_flips(tasks, 40_000) == pytest.approx(1 / 40_001)


def test_the_interval_of_the_mean_over_tasks_is_that_of_its_bootstrap():
    """Drawn within the tasks, of another size each."""
    random = np.random.default_rng(5)
    tasks = [random.choice([-1.0, 0.0, 0.0, 0.0, 1.0], n) for n in (40, 160, 90)]
    means = [np.mean([random.choice(apart, len(apart)).mean() for apart in tasks]) for _ in range(4000)]
    assert paired.reach_over_tasks(tasks) == pytest.approx(1.96 * np.std(means), rel=0.06)
    assert paired.reach_over_tasks([np.zeros(4)]) == 0


def fieller(part: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """All ratios that a paired t-test of part - ratio x whole does not refuse at 5 %, by a search."""
    from scipy.optimize import brentq

    middle = part.mean() / whole.mean()

    def refused(ratio: float) -> float:
        return float(stats.ttest_1samp(part - ratio * whole, 0).pvalue) - 0.05

    return brentq(refused, middle - 50, middle), brentq(refused, middle, middle + 50)


@pytest.mark.parametrize("seed", range(5))
def test_a_shares_interval_holds_fiellers_and_is_no_wider_than_the_bootstrap_asks(seed: int):
    random = np.random.default_rng(seed)
    whole = random.normal(0.7, 0.2, 12)
    part = 0.8 * whole + random.normal(0, 0.05, 12)
    low, high = paired.share(part, whole)
    ends = fieller(part, whole)
    pick = np.random.default_rng(1).integers(0, 12, (4000, 12))
    drawn = np.quantile(part[pick].mean(1) / whole[pick].mean(1), [0.025, 0.975])
    assert low == pytest.approx(min(ends[0], drawn[0]), abs=0.005)
    assert high == pytest.approx(max(ends[1], drawn[1]), abs=0.005)


def test_a_shares_interval_holds_the_share_as_often_as_it_says():
    """16 windows as uneven as those of text are; 95 %, less three standard errors."""
    random = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        level = random.gamma(4, 0.2, 16)
        part = 0.85 * level + random.normal(0, 0.05, 16)
        low, high = paired.share(part, level + random.normal(0, 0.05, 16))
        held += low <= 0.85 <= high
    assert held >= 367


def test_a_share_of_a_whole_within_its_error_has_no_interval():
    random = np.random.default_rng(0)
    for whole in (random.normal(0.01, 1, 16), -np.ones(16), np.zeros(16), np.ones(1)):
        with pytest.raises(ValueError, match="is not above 0 beyond its error"):
            paired.share(np.ones(len(whole)), whole)
    assert paired.share(np.full(8, 0.4), np.full(8, 0.5)) == pytest.approx((0.8, 0.8))


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 3)), min_size=1, max_size=8))
def test_of_clusters_all_signs_are_counted(items_apart: list[tuple[int, int]]):
    """By brute force over the signs of the clusters' sums."""
    apart, clusters = np.array([a for a, _ in items_apart], float), np.array([c for _, c in items_apart])
    sums = np.bincount(clusters, apart)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    expected = float((np.abs(signs.T @ sums) >= abs(sums.sum()) - 1e-9).mean())
    coins = paired.by_cluster([apart], [clusters])
    assert coins.mean() == pytest.approx(apart.mean())
    assert paired.sign_flips([coins]) == pytest.approx(expected)
