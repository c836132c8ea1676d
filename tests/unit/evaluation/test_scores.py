"""Scores of made-up answers, by hand and against lm-eval's and statsmodels' own errors."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from lm_eval.api.metrics import mean_stderr

from pipeline.evaluation import items, scores


def answers(task: str, right: list[int], group: str = "basic", **columns: list) -> pd.DataFrame:
    return items.answers(
        {
            "task": task, "item": i, "hash": f"{i}", "prediction": 0, "correct": bool(value), "log_likelihoods": [],
            "group": group, **{name: values[i] for name, values in columns.items()},
        }
        for i, value in enumerate(right)
    )  # fmt: skip


def clustered_error(values: np.ndarray, clusters: list[int]) -> float:
    """Of a mean, by statsmodels' sandwich over groups; its correction (n - 1) / (n - k) is 1 for a constant."""
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    return float(fit.bse[0])


def test_of_items_that_stand_alone_errors_are_lm_evals():
    one, other = [1, 0, 1, 1, 0], [0, 0, 1]
    made = scores.of_answers(pd.concat([answers("piqa", one), answers("mmlu", other, "emergent")]))
    assert made["accuracy.piqa"] == pytest.approx(3 / 5)
    assert made["accuracy.piqa.stderr"] == pytest.approx(mean_stderr(one))
    assert made["accuracy.emergent.stderr"] == pytest.approx(mean_stderr(other))
    assert made["accuracy"] == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert made["accuracy.stderr"] == pytest.approx(math.hypot(mean_stderr(one), mean_stderr(other)) / 2)


def test_of_clusters_errors_are_those_of_the_sandwich():
    right, clusters = [1, 1, 0, 0, 1, 0, 1], [0, 0, 1, 1, 1, 2, 2]
    made = scores.of_answers(answers("ethics_cm", right, cluster=clusters))
    assert made["accuracy.ethics_cm.stderr"] == pytest.approx(clustered_error(np.array(right, float), clusters))


def test_a_group_and_the_whole_are_means_over_tasks_whatever_their_sizes():
    parts = [answers("piqa", [1] * 9 + [0]), answers("blimp", [0, 1]), answers("mmlu", [0, 0, 0, 1], "emergent")]
    made = scores.of_answers(pd.concat(parts))
    assert made["accuracy.basic"] == pytest.approx((0.9 + 0.5) / 2)
    assert made["accuracy.emergent"] == 0.25
    assert made["accuracy"] == pytest.approx((0.9 + 0.5 + 0.25) / 3)


def test_a_clean_task_and_its_attacked_one_are_paired():
    clean, attacked = [1, 1, 1, 0, 1, 0], [0, 1, 0, 0, 1, 1]
    made = scores.of_answers(
        pd.concat([answers("adv_rte_clean", clean, "trust"), answers("adv_rte", attacked, "trust")])
    )
    apart = [c - a for c, a in zip(clean, attacked, strict=True)]
    assert made["difference.adv_rte"] == pytest.approx(np.mean(apart))
    assert made["difference.adv_rte.stderr"] == pytest.approx(mean_stderr(apart))
    both = [(c + a) / 2 for c, a in zip(clean, attacked, strict=True)]
    assert made["accuracy.trust.stderr"] == pytest.approx(mean_stderr(both)), "not as if there were twice the items"
    assert "difference.adv_rte" not in scores.of_answers(answers("adv_rte", attacked, "trust"))


def test_two_levels_of_a_task_are_paired_by_cluster():
    levels, clusters = ["clean", "attacked"] * 4, [0, 0, 1, 1, 2, 2, 3, 3]
    right = [1, 0, 1, 1, 1, 0, 0, 0]
    made = scores.of_answers(answers("attacked", right, "trust", level=levels, cluster=clusters))
    assert made["difference.attacked"] == pytest.approx(0.5)
    assert made["difference.attacked.stderr"] == pytest.approx(mean_stderr([1, 0, 1, 0]))


def test_balanced_accuracy_is_the_mean_over_right_answers():
    """As of always the more frequent one: a half, without error."""
    answer = [0, 0, 0, 1]
    made = scores.of_answers(answers("ethics_virtue", [1, 1, 1, 0], answer=answer))
    assert (made["accuracy.ethics_virtue"], made["balanced.ethics_virtue"]) == (0.75, 0.5)
    assert made["balanced.ethics_virtue.stderr"] == 0
    right = np.array([1, 0, 1, 1])
    made = scores.of_answers(answers("ethics_virtue", right.tolist(), answer=answer))
    moves = np.array([(1 - 2 / 3) / 6, (0 - 2 / 3) / 6, (1 - 2 / 3) / 6, 0])
    assert made["balanced.ethics_virtue"] == pytest.approx((2 / 3 + 1) / 2)
    assert made["balanced.ethics_virtue.stderr"] == pytest.approx(math.sqrt(4 / 3 * (moves**2).sum()))
    assert "balanced.piqa" not in scores.of_answers(answers("piqa", [1, 0], answer=[0, 1]))


def test_one_item_has_no_error_and_none_no_score():
    assert math.isnan(scores.of_answers(answers("piqa", [1]))["accuracy.piqa.stderr"])
    assert scores.of_answers(items.answers([])) == {}


def test_what_is_answered_in_writing_has_a_score_and_no_part_in_the_means():
    chosen = [answers("piqa", [1, 0, 1, 1]), answers("mmlu", [1, 0], "emergent")]
    written = [answers(name, [0, 0, 1], "emergent") for name in ("gsm8k", "ifeval", "instructions")]
    made = scores.of_answers(pd.concat([*chosen, *written]))
    without = scores.of_answers(pd.concat(chosen))
    own = {f"accuracy.{name}{end}" for name in ("gsm8k", "ifeval", "instructions") for end in ("", ".stderr")}
    assert {*made} - own == {*without}
    assert {name: made[name] for name in without} == without
    assert made["accuracy.gsm8k"] == pytest.approx(1 / 3)
    assert made["accuracy.gsm8k.stderr"] == pytest.approx(mean_stderr([0, 0, 1]))
    assert {*scores.of_answers(pd.concat(written))} == own
