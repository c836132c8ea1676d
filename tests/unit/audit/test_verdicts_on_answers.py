"""Answers that changed, that were written, and that come as one."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import items
from pipeline.evaluation.tasks import INSTRUCTIONS
from tests.unit.audit.test_verdicts import judged, made


def of_task(task: str, chosen: list[int], right: list[int], clusters: list[int] | None = None) -> items.Items:
    rows = [
        {"task": task, "item": i, "hash": f"{i}", "prediction": choice, "correct": bool(value), "log_likelihoods": [],
         "cluster": i if clusters is None else clusters[i]}
        for i, (choice, value) in enumerate(zip(chosen, right, strict=True))
    ]  # fmt: skip
    return items.Items(items.answers(rows), items.documents([]))


def test_answers_that_changed_are_counted_both_ways_and_in_all():
    before = of_task("mmlu", [0, 1, 2, 3, 0, 1], [1, 1, 1, 0, 0, 0])
    after = of_task("mmlu", [0, 1, 3, 2, 1, 1], [1, 1, 0, 0, 1, 0])
    comparison = judged(before, after)["accuracy.mmlu"]
    assert (comparison.gained, comparison.lost, comparison.changed) == (1, 1, 3), "one is wrong both times"
    documents = judged(made(np.full(4, 0.2), np.ones(8)), made(np.full(4, 0.3), np.ones(8)))["kl"]
    assert (documents.gained, documents.lost, documents.changed) == (None, None, None)


def test_what_is_answered_in_writing_is_no_part_of_the_mean():
    before, after = (
        pd.concat([of_task("piqa", [0] * 8, right).answers, of_task(INSTRUCTIONS, [0] * 8, written).answers])
        for right, written in (([1] * 8, [1] * 8), ([1] * 6 + [0] * 2, [0] * 8))
    )
    known = judged(*(items.Items(table, items.documents([])) for table in (before, after)))
    mean = known["accuracy"]
    assert (mean.before, mean.after, mean.pairs, mean.of) == (1, 0.75, 8, 8)
    assert known["accuracy.instructions"].after == 0


def test_items_that_come_as_one_are_one_coin():
    """Six clusters of four that turn right together: by McNemar's test on six pairs, not on 24."""
    clusters = [i // 4 for i in range(40)]
    right = [int(i >= 24) for i in range(40)]
    before, after = (of_task("ethics_cm", right, values, clusters) for values in (right, [1] * 40))
    comparison = judged(before, after)["accuracy.ethics_cm"]
    assert comparison.p == pytest.approx(2 * 0.5**6)
    assert (comparison.pairs, comparison.gained, comparison.difference) == (40, 24, pytest.approx(0.6))
    alone = judged(of_task("ethics_cm", right, right), of_task("ethics_cm", right, [1] * 40))["accuracy.ethics_cm"]
    assert alone.p == pytest.approx(2 * 0.5**24)
    assert alone.high - alone.low == pytest.approx((comparison.high - comparison.low) / 2, rel=0.01)


def test_an_item_and_its_attacked_one_are_one_coin():
    tables = {}
    for name, turned in (("before", 0), ("after", 1)):
        parts = [of_task(task, [turned] * 8, [turned] * 6 + [1, 0]).answers for task in ("adv_rte", "adv_rte_clean")]
        tables[name] = items.Items(pd.concat(parts, ignore_index=True), items.documents([]))
    comparison = judged(tables["before"], tables["after"])["accuracy"]
    assert comparison.difference == pytest.approx(6 / 8)
    assert comparison.p == pytest.approx(2 * 0.5**6)
