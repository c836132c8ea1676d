"""Statistics of a sweep, against scipy's and against numbers that were worked out by hand."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.report import comparison

NONE = {"distill.freeze": "none"}


def points(scores: dict[str, list[float]], metric: str = "kl") -> pd.DataFrame:
    """A row a policy and seed."""
    rows = [
        {"setting": policy, "distill.freeze": policy, "distill.seed": seed, metric: value}
        for policy, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def compared(table: pd.DataFrame, baseline: dict[str, str] = NONE, metric: str = "kl") -> dict[str, dict]:
    comparisons = comparison.compare(table, ["distill.freeze"], "distill.seed", [metric], baseline)
    return {row["setting"]: row for row in comparisons.to_dict("records")}


def test_mean_spread_and_paired_difference_by_hand():
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, standard error 0.1 / sqrt 3, t(2) = 4.3027."""
    settings = compared(points({"none": [1.0, 2.0, 3.0], "ov": [1.1, 2.2, 3.3]}))
    none, ov = settings["none"], settings["ov"]
    assert (none["n"], none["mean"], none["std"]) == (3, 2.0, 1.0)
    assert (none["pairs"], none["verdict"]) == (0, "baseline")
    assert (ov["n"], ov["mean"], ov["std"]) == (3, pytest.approx(2.2), pytest.approx(1.1))
    assert (ov["pairs"], ov["difference"], ov["stderr"]) == (3, pytest.approx(0.2), pytest.approx(0.1 / math.sqrt(3)))
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert (ov["low"], ov["high"]) == (pytest.approx(0.2 - reach), pytest.approx(0.2 + reach))
    assert ov["verdict"] == "noise", "0.2 ± 0.25"


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=40))
def test_an_interval_agrees_with_scipys_paired_t_test(pairs: list[tuple[float, float]]):
    ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
    apart = [a - b for a, b in pairs]
    if pd.Series(apart).std() < 1e-6:
        return
    difference = comparison.difference(apart)
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    scale = max(abs(interval.low), abs(interval.high))
    assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high), abs=1e-4 * scale)
    if abs(test.pvalue - 0.05) > 1e-3:
        assert (difference["verdict"] in ("above", "below")) == (test.pvalue < 0.05)


@pytest.mark.parametrize(("shift", "verdict"), [(0.5, "above"), (-0.5, "below"), (0.0, "noise")])
def test_what_exceeds_the_noise_is_called_above_or_below(shift: float, verdict: str):
    jitter = [0.01, -0.01, 0.02, -0.02]
    settings = compared(points({"none": [1.0, 2.0, 3.0, 4.0], "ov": [i + 1 + shift + j for i, j in enumerate(jitter)]}))
    assert settings["ov"]["verdict"] == verdict


def test_one_pair_has_a_difference_and_nothing_more():
    ov = compared(points({"none": [1.0], "ov": [1.5]}))["ov"]
    assert (ov["pairs"], ov["difference"], ov["verdict"]) == (1, 0.5, "")
    assert all(math.isnan(ov[name]) for name in ("std", "stderr", "low", "high"))


def test_a_point_without_a_partner_counts_for_the_mean_alone():
    ov = compared(points({"none": [1.0, 2.0], "ov": [1.5, 2.5, 9.0]}))["ov"]
    assert (ov["n"], ov["pairs"], ov["difference"]) == (3, 2, 0.5)
    assert ov["mean"] == pytest.approx(13 / 3)


def test_points_that_are_not_finished_do_not_count():
    settings = compared(points({"none": [1.0, math.nan], "ov": [1.5, 2.5], "mlp": [math.nan, math.nan]}))
    assert set(settings) == {"none", "ov"}
    assert (settings["none"]["n"], settings["ov"]["n"], settings["ov"]["pairs"]) == (1, 2, 1)


def test_perplexities_are_compared_by_their_logarithms():
    ov = compared(points({"none": [10.0, 20.0], "ov": [11.0, 22.0]}, "perplexity"), metric="perplexity")["ov"]
    assert ov["mean"] == 16.5
    assert ov["difference"] == pytest.approx(math.log(1.1))
    assert ov["stderr"] == pytest.approx(0, abs=1e-12)


def test_partners_agree_in_the_knobs_that_the_baseline_does_not_name():
    """ov at each learning rate against none at the same one: 0.5 and 0.1, not 4.5 or the like."""
    rows = [
        {"setting": f"freeze={policy} lr={rate}", "freeze": policy, "lr": rate, "seed": 0, "kl": value}
        for policy, rate, value in (("none", "1", 1.0), ("ov", "1", 1.5), ("none", "2", 5.0), ("ov", "2", 5.1))
    ]
    comparisons = comparison.compare(pd.DataFrame(rows), ["freeze", "lr"], "seed", ["kl"], {"freeze": "none"})
    apart = dict(zip(comparisons["setting"], comparisons["difference"], strict=True))
    assert apart["freeze=ov lr=1"] == pytest.approx(0.5)
    assert apart["freeze=ov lr=2"] == pytest.approx(0.1)
    verdicts = [*comparisons["verdict"]]
    assert verdicts == ["baseline", "", "baseline", "", "baseline", "noise"], "the last two over all rates"
    whole = comparison.compare(pd.DataFrame(rows), ["freeze", "lr"], "seed", ["kl"], {"freeze": "none", "lr": "1"})
    assert [*whole["difference"]] == pytest.approx([math.nan, 0.5, 4.0, 4.1], nan_ok=True)


def test_what_the_baseline_leaves_open_is_taken_together_as_well():
    """Two rates with two seeds each: four pairs, of the same seed and rate."""
    rows = [
        {"setting": f"freeze={policy} lr={lr}", "distill.freeze": policy, "distill.lr": lr, "distill.seed": seed}
        | {"kl": level + seed + (0.0 if policy == "none" else gain)}
        for policy in ("none", "ov")
        for lr, level, gain in (("0.1", 1.0, 0.1), ("0.2", 5.0, 0.3))
        for seed in (0, 1)
    ]
    comparisons = comparison.compare(pd.DataFrame(rows), ["distill.freeze", "distill.lr"], "distill.seed", ["kl"], NONE)
    assert [*comparisons["setting"]][4:] == ["freeze=none, over all", "freeze=ov, over all"]
    none, ov = comparisons.to_dict("records")[4:]
    assert (none["verdict"], none["n"], none["mean"]) == ("baseline", 4, 3.5)
    assert (ov["pairs"], ov["difference"]) == (4, pytest.approx(0.2))
    assert ov["stderr"] == pytest.approx(stats.sem([0.1, 0.1, 0.3, 0.3]))


def test_without_a_baseline_nothing_is_compared():
    table = points({"none": [1.0, 2.0], "ov": [1.5, 2.5]})
    comparisons = comparison.compare(table, ["distill.freeze"], "distill.seed", ["kl"], {})
    assert [*comparisons["pairs"]] == [0, 0]
    assert comparison.rows(comparisons)[0] == ["setting", "points", "kl"]
    assert "Differences" not in comparison.note(comparisons, 4, 4)


def test_the_table_to_read():
    table = points({"none": [1.0, 2.0, 3.0], "ov": [1.1, 2.1, 3.1001], "qk": [1.1], "mlp": [1.0, 2.5, 3.0]})
    comparisons = comparison.compare(table, ["distill.freeze"], "distill.seed", ["kl"], NONE)
    assert comparison.rows(comparisons) == [
        ["setting", "points", "kl", "difference, kl"],
        ["none", "3", "2 ± 1", "baseline"],
        ["ov", "3", "2.1 ± 1", "+0.1 ± 3.3e-05 (3) *"],
        ["qk", "1", "1.1", "+0.1 (1)"],
        ["mlp", "3", "2.1667 ± 1", "+0.167 ± 0.17 (3)"],
    ]


def test_markdown_holds_the_table_the_note_and_what_is_missing():
    rows = points({"none": [1.0, 2.0], '["a|b"]': [1.5, 2.5]})
    comparisons = comparison.compare(rows, ["distill.freeze"], "distill.seed", ["kl"], NONE)
    text = comparison.markdown("ablation", comparisons, 4, 6)
    lines = text.splitlines()
    assert lines[:4] == [
        "# ablation",
        "",
        "| setting | points | kl | difference, kl |",
        "| --- | ---: | ---: | ---: |",
    ]
    assert '["a\\|b"]' in text
    assert "4 of 6 points are finished" in text
    assert text == comparison.markdown("ablation", comparisons, 4, 6)
