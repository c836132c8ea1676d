"""The paper's claims, on answers of which it is known whether they hold."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from pipeline.recommend import claim_points, claims, contrasts
from pipeline.recommend.claims import DOES_NOT, HOLDS, NOT_MEASURED, NOT_SHOWN, Outcome
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import of_table
from tests.unit.recommend.made_answers import DOWN, Rights, first, laboratory, table

TEACHER = {"basic/reasoning": first(1000), "emergent/multi-step": first(900), "long/lines": first(1200)}
LEVELS = {"long/lines": np.repeat(["10 lines", "100 lines", "200 lines"], 500)}
TEACHER["long/lines"] = np.tile(first(400, 500), 3)
STATIC, EXCEPTION = (
    json.dumps(DOWN),
    json.dumps({**DOWN, "overrides": [{"match": "down_proj", "activations": {"dynamic": True}}]}),
)


def judge(points: dict, margin: float = 0.02) -> Judge:
    return Judge(laboratory(TEACHER, points, levels=LEVELS), margin)


def all_at(count: int) -> Rights:
    """So many of each part's items right, of those that the teacher has right, less the same share of each."""
    return {name: right & (np.arange(len(right)) % 1000 < count) for name, right in TEACHER.items()}


def lengths(*counts: int) -> Rights:
    """Right lines by length, of 500."""
    return {"long/lines": np.concatenate([first(count, 500) for count in counts])}


def test_each_claim_has_a_line_and_without_its_points_is_not_measured():
    rows = claims.rows(claims.judged(judge({"W8": {}}), None))
    assert len(rows) == 8
    assert {row[-1] for row in rows[1:]} == {NOT_MEASURED}
    assert all(row[2].startswith("needs ") for row in rows[1:])


@pytest.mark.parametrize("name", ["laboratory", "laboratory-quick"])
def test_each_sweep_has_the_points_of_every_claim(name: str):
    """All but that on kurtosis, which is of signals."""
    written = yaml.safe_load(Path(f"sweeps/{name}.yaml").read_text())
    rotation = written["set"].get("calibrate.rotation")
    points = {}
    for point in written["points"]:
        scheme = point["scheme"] if isinstance(point["scheme"], str) else json.dumps(point["scheme"])
        points[scheme, point["calibrate.method"], point.get("calibrate.rotation", rotation)] = {}
    outcomes = claims.judged(judge(points), None)
    assert [claim.test for claim, outcome in outcomes if outcome.verdict == NOT_MEASURED] == [claims.kurtosis_tells]


def test_multi_step_and_self_calibration_against_basic():
    heavy: Rights = {"emergent/multi-step": first(600)}
    held = claims.more_for_multi_step(judge({"W4": {**heavy, "basic/reasoning": first(995)}}), None)
    assert held.verdict == HOLDS
    assert "multi-step +32.8 ± " in held.ours
    assert claims.more_for_multi_step(judge({"W4": {"basic/reasoning": first(600)}}), None).verdict == DOES_NOT
    assert claims.more_for_multi_step(judge({"W4": {}}), None).verdict == NOT_SHOWN


@pytest.mark.parametrize(
    ("four", "three", "verdict"),
    [(1000, 800, HOLDS), (900, 800, DOES_NOT), (1000, 999, DOES_NOT), (985, 800, NOT_SHOWN)],
)
def test_four_bits_and_three(four: int, three: int, verdict: str):
    points = {"W4": {"basic/reasoning": first(four)}, "W3": {"basic/reasoning": first(three)}}
    assert claims.four_bits_and_not_three(judge(points), None).verdict == verdict


def test_weights_in_groups_are_taken_where_there_are_such():
    points = {"W4": all_at(10), "W3": all_at(10), "W4g64": {}, "W3g64": all_at(700)}
    assert claims.four_bits_and_not_three(judge(points), None).verdict == HOLDS


@pytest.mark.parametrize(("awq3", "awq2", "verdict"), [(900, 300, HOLDS), (700, 300, DOES_NOT), (900, 990, DOES_NOT)])
def test_awq_at_three_and_two_bits(awq3: int, awq2: int, verdict: str):
    points = {"W3": all_at(800), "W2": all_at(250), ("W3", "awq"): all_at(awq3), ("W2", "awq"): all_at(awq2)}
    assert claims.awq_at_three_bits(judge(points), None).verdict == verdict


@pytest.mark.parametrize(("smooth", "verdict"), [(700, HOLDS), (400, DOES_NOT), (1000, DOES_NOT)])
def test_smoothquant_at_four_bits(smooth: int, verdict: str):
    points = {"W4A4": all_at(500), ("W4A4", "smoothquant"): all_at(smooth)}
    assert claims.smoothquant_at_four_bits(judge(points), None).verdict == verdict


@pytest.mark.parametrize(
    ("four", "eight", "verdict"),
    [
        ((400, 350, 200), (400, 400, 400), HOLDS),
        ((400, 350, 200), (400, 350, 200), NOT_SHOWN),
        ((400, 400, 400), (400, 400, 400), DOES_NOT),
    ],
)
def test_the_cache_by_length(four: tuple[int, ...], eight: tuple[int, ...], verdict: str):
    outcome = claims.cache_by_length(judge({"W8KV4": lengths(*four), "W8KV8": lengths(*eight)}), None)
    assert outcome.verdict == verdict
    assert "10 lines: KV4" in outcome.ours
    assert "200 lines: KV4" in outcome.ours


def test_the_caches_of_the_claim_have_a_scale_a_token_whatever_stands_before_them():
    cache = {"bits": 4, "symmetric": False, "group": 0, "keys": "channel", "block": 32}
    scheme = json.dumps({**DOWN, "activations": {**DOWN["activations"], "bits": 0}, "kv_cache": cache})
    point = claim_points.plain(judge({(scheme, "rtn"): {}, "W8KV4": {}}), (8, 0, 4), "rtn")
    assert point is not None
    assert point.scheme == "W8KV4"


def test_places_of_an_answer_are_no_lengths():
    """A number is a length where it counts lines, whatever the task; of several tasks those of one length are one."""
    levels = {
        "long/multi-document QA": np.repeat(["1", "20"], 50),
        "long/lines": np.repeat(["200", "20"], 50),
        "long/retrieval": np.repeat(["20 lines", "8 pairs"], 50),
    }
    known = laboratory({name: first(60, 100) for name in levels}, {"W8": {}}, levels=levels)
    parts = claim_points.by_length(Judge(known, 0.02))
    assert [(part.name, part.rows.tolist()) for part in parts] == [
        ("20 lines", [*range(150, 250)]),
        ("200 lines", [*range(100, 150)]),
    ]


def test_a_length_with_one_text_alone_has_no_error_and_is_left_out():
    levels = {"long/lines": np.repeat(["20", "200"], 50)}
    answers = table({"long/lines": first(60, 100)}, {"W8": {}}, levels=levels)
    one_text = answers.assign(cluster=answers["cluster"].where(answers["level"] == "20", 99))
    assert [part.name for part in claim_points.by_length(Judge(of_table(one_text), 0.02))] == ["20 lines"]


@pytest.mark.parametrize(("down", "verdict"), [(1000, HOLDS), (800, DOES_NOT)])
def test_down_proj_alone_dynamic(down: int, verdict: str):
    points = {"W8A8": {}, (STATIC, "rtn"): all_at(500), (EXCEPTION, "rtn"): all_at(down)}
    outcome = claims.dynamic_down(judge(points), None)
    assert outcome.verdict == verdict
    assert "all dynamic 0.0 ± 0.0 %" in outcome.ours


def signals(kurtosis: list[float], cost: list[float]) -> pd.DataFrame:
    rows = [
        {
            "variant": "float",
            "layer": i,
            "role": "q",
            "name": f"{i}.q",
            "tensor": tensor,
            "statistic": "kurtosis",
            "value": k,
        }
        for tensor in ("weight", "input")
        for i, k in enumerate(kurtosis)
    ]
    rows += [
        {
            "variant": "rtn",
            "layer": i,
            "role": "",
            "name": "",
            "tensor": "layer",
            "statistic": "one_layer_kl",
            "value": kl,
        }
        for i, kl in enumerate(cost)
    ]
    return pd.DataFrame(rows)


def test_kurtosis_and_the_cost_of_a_layer():
    order, turned = [float(i) for i in range(20)], [float(-i) for i in range(20)]
    mixed = [float(i * 7 % 20) for i in range(20)]

    def found(cost: list[float]) -> Outcome:
        return claims.kurtosis_tells(judge({"W8": {}}), signals(order, cost))

    assert (found(order).verdict, found(turned).verdict, found(mixed).verdict) == (HOLDS, DOES_NOT, NOT_SHOWN)
    without = signals(order, order).query("statistic == 'kurtosis'")
    assert claims.kurtosis_tells(judge({"W8": {}}), without).verdict == NOT_MEASURED


def test_the_interval_of_a_rank_correlation_holds_as_often_as_it_says():
    """Against normal pairs, whose rank correlation is known of their correlation: 6 / pi asin(r / 2)."""
    random, r = np.random.default_rng(0), 0.5
    truth = 6 / np.pi * np.arcsin(r / 2)
    pairs = random.multivariate_normal([0, 0], [[1, r], [r, 1]], (1000, 30))
    held = [low <= truth <= high for _, low, high in (contrasts.spearman(p[:, 0], p[:, 1]) for p in pairs)]
    assert 0.92 < np.mean(held) < 0.98
    assert contrasts.spearman(pairs[0, :, 0], pairs[0, :, 1])[0] == stats.spearmanr(pairs[0]).statistic


def test_a_difference_of_two_losses_is_paired_where_items_are_the_same_ones():
    """Against a bootstrap over items."""
    known = judge({"W4": all_at(850)}).laboratory
    (point,) = known.points
    reasoning, lines = known.named(["reasoning"])[0], known.named(["long"])[0]
    apart = contrasts.more_lost(known, point, reasoning, lines)
    assert contrasts.more_lost(known, point, reasoning, reasoning).error == 0
    random, drawn = np.random.default_rng(0), []
    right = {name: known.scored[name]["accuracy"] for name in ("teacher", point.name)}
    for _ in range(2000):
        kept = [
            right[point.name][rows].mean() / right["teacher"][rows].mean()
            for rows in (random.choice(part.rows, len(part.rows)) for part in (reasoning, lines))
        ]
        drawn.append(kept[1] - kept[0])
    assert apart.value == pytest.approx(np.mean(drawn), abs=3 * apart.error / np.sqrt(2000) + 1e-3)
    assert apart.error == pytest.approx(np.std(drawn), rel=0.1)
