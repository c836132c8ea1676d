"""Brier score and expected calibration error by hand, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.evaluation import calibration, items


def answered(probabilities: list[list[float]], right: list[int], **columns: list) -> pd.DataFrame:
    return items.answers(
        {
            "task": "piqa", "item": i, "hash": f"{i}", "prediction": int(np.argmax(p)),
            "correct": int(np.argmax(p)) == answer, "log_likelihoods": np.log(p), "probabilities": p, "answer": answer,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, (p, answer) in enumerate(zip(probabilities, right, strict=True))
    )  # fmt: skip


def measured(table: pd.DataFrame) -> dict[str, float]:
    return calibration.scores(table, str)


def drawn(count: int, sharpness: float, seed: int = 0) -> pd.DataFrame:
    """Items of four choices whose right ones are drawn from probabilities; the model says these to a power."""
    random = np.random.default_rng(seed)
    true = random.dirichlet(np.ones(4), count)
    said = true**sharpness / (true**sharpness).sum(axis=1, keepdims=True)
    right = [int(random.choice(4, p=p)) for p in true]
    return answered(said.tolist(), right)


def test_the_brier_score_is_its_sum_over_choices():
    table = answered([[0.7, 0.2, 0.1], [1.0, 0.0], [0.5, 0.5]], [1, 0, 1])
    own = [np.array([0.7, 0.2, 0.1]), np.array([1.0, 0.0]), np.array([0.5, 0.5])]
    assert calibration.brier(own, [1, 0, 1]) == pytest.approx([0.49 + 0.64 + 0.01, 0.0, 0.5])
    made = measured(table)
    assert made["calibration.brier"] == pytest.approx((1.14 + 0.5) / 3)
    assert made["calibration.brier.stderr"] == pytest.approx(stats.sem([1.14, 0, 0.5]))


def test_bins_hold_equally_many_items():
    confidence = np.linspace(0.5, 1, 20)
    right = (np.arange(20) % 3 > 0).astype(float)
    parts = zip(np.split(confidence, 10), np.split(right, 10), strict=True)
    expected = np.mean([abs(c.mean() - r.mean()) for c, r in parts])
    assert calibration.expected_error(confidence, right) == pytest.approx(expected)
    shuffled = np.random.default_rng(0).permutation(20)
    assert calibration.expected_error(confidence[shuffled], right[shuffled]) == pytest.approx(expected)


def test_an_item_of_weight_two_is_two_items():
    confidence, right = np.array([0.5, 0.6, 0.7, 0.9]), np.array([1.0, 0, 0, 1])
    twice = calibration.expected_error(np.repeat(confidence, 2), np.repeat(right, 2), bins=2)
    assert calibration.expected_error(confidence, right, np.full(4, 2.0), bins=2) == pytest.approx(twice)
    some = np.array([2.0, 0, 1, 1])
    again = calibration.expected_error(np.array([0.5, 0.5, 0.7, 0.9]), np.array([1.0, 1, 0, 1]), bins=2)
    assert calibration.expected_error(confidence, right, some, bins=2) == pytest.approx(again)


def test_who_says_what_is_so_is_calibrated_and_who_is_too_sure_is_not():
    honest, sure = measured(drawn(4000, 1)), measured(drawn(4000, 4))
    assert honest["calibration.ece"] < 0.03
    assert sure["calibration.ece"] > 0.15
    assert honest["calibration.brier"] < sure["calibration.brier"], "it is proper"


def test_the_errors_are_as_wide_as_the_scores_of_other_items_spread():
    made = [measured(drawn(400, 3, seed)) for seed in range(60)]
    for name in ("calibration.brier", "calibration.ece"):
        spread = np.std([scores[name] for scores in made], ddof=1)
        told = np.mean([scores[f"{name}.stderr"] for scores in made])
        assert told == pytest.approx(spread, rel=0.3), name


def test_copies_of_an_item_in_its_cluster_say_nothing_more():
    few = drawn(100, 2)
    copies = pd.concat([few, few.assign(item=few["item"] + 100)], ignore_index=True)
    once, twice = measured(few), measured(copies)
    assert twice["calibration.brier.stderr"] == pytest.approx(once["calibration.brier.stderr"])
    assert twice["calibration.ece.stderr"] == pytest.approx(once["calibration.ece.stderr"], rel=0.2)


def test_items_without_choices_or_whose_right_one_is_not_known_do_not_count():
    table = answered([[0.7, 0.3], [0.6, 0.4]], [0, 1])
    more = pd.concat([table, answered([[0.1]], [0], cluster=[9]), answered([[0.9, 0.1]], [-1], cluster=[8])])
    assert measured(more) == measured(table)
    assert measured(answered([[0.1]], [0])) == {}


def test_what_a_metric_divides_by_lengths_is_no_probability():
    """Sure and right both times, and told so, though the ranks by length are nearly equal."""
    sure = answered([[0.99, 0.01], [0.98, 0.02]], [0, 0])
    ranked = sure.assign(probabilities=[[0.53, 0.47], [0.52, 0.48]])
    assert measured(ranked) == measured(sure)
    assert measured(ranked)["calibration.ece"] == pytest.approx(0.015)
