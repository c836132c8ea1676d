"""How many items a margin needs, against the published planning table and statsmodels' power of the t-test."""

import math

import pytest
from statsmodels.stats.power import TTestPower

from pipeline.statistics.sample_size import groups_for, items_needed


@pytest.mark.parametrize(("margin", "items"), [(0.02 * 0.665, [1744, 3492, 5239]), (0.03, [340, 683, 1027])])
def test_items_for_a_margin_of_2_percent_of_an_accuracy_of_66_5_and_of_3_points(margin: float, items: list[int]):
    """At 5, 10 and 15 % flips."""
    assert [items_needed(flips, margin) for flips in (0.05, 0.10, 0.15)] == items


def test_items_by_hand():
    """(1.6449 sqrt(0.1 - 0.0004) + 0.8416 sqrt(0.1))^2 / 0.0004; and flips that are all losses."""
    by_hand = (1.644854 * math.sqrt(0.0996) + 0.841621 * math.sqrt(0.1)) ** 2 / 0.0004
    assert items_needed(0.1, 0.02) == math.ceil(by_hand)
    assert items_needed(0.02, 0.02) > 1.644854**2 / 0.02


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.9])
@pytest.mark.parametrize(("level", "power"), [(0.05, 0.8), (0.01, 0.9)])
def test_items_of_a_t_test_are_statsmodels(effect: float, level: float, power: float):
    theirs = TTestPower().solve_power(effect, alpha=level, power=power, alternative="larger")
    assert groups_for(3 * effect, 9.0, level, power) == pytest.approx(theirs, abs=0.6)


def test_a_t_test_needs_two_groups():
    assert groups_for(0.1, 0.0, 0.05, 0.8) == 2


def test_what_is_out_of_range_is_said_at_once():
    with pytest.raises(ValueError, match=r"margin: 2 is .*; level: 0.9 is .*; power: 1 is "):
        items_needed(0.1, 2, 0.9, 1)
    for flips in (0.01, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"flips: .* is not between the margin, 0.02, and 1"):
            items_needed(flips, 0.02)
