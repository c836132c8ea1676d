"""Scores that pair up, and what is said of those that do not."""

import numpy as np
import pytest

from pipeline.statistics.paired_scores import Scores

NAN = float("nan")


def test_lists_bools_and_labels_become_arrays():
    scores = Scores.of([True, False, True], [1, 0, 0], 0.25, ["b", "a", "b"])
    assert scores.teacher.tolist() == [1, 0, 1]
    assert scores.chance.tolist() == [0.25] * 3
    assert scores.clusters.tolist() == [0, 1, 0]
    assert scores.right_or_wrong
    assert Scores.of([1, 0], [0, 1]).clusters.tolist() == [0, 1]
    assert not Scores.of([1.0, 0.0], [0.5, 1.0]).right_or_wrong


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (([1, 0, 1], [1, 0]), "other numbers of items: teacher 3, student 2, chance 3, clusters 3; keep the items"),
        (([1, 0], [1, 0], [0.5] * 3), "chance 3"),
        (([1, 0], [1, 0], 0.0, ["a"]), "clusters 1"),
        (([[1, 0]], [1, 0]), r"teacher: shape \(1, 2\), not \[items\]"),
        (([1], [1]), "items: 1; an error needs at least two"),
        (([], []), "items: 0; an error needs at least two"),
        (([1, 0, 1], [1, NAN, NAN]), r"student: 2 of 3 are not finite \(item 1: nan\); leave these items out"),
        (([1, 0], [np.inf, 0]), r"item 0: inf"),
        (([1, 0], [1, 0], -0.25), "chance: -0.25 is outside 0 to 1"),
        (([1, 0], [1, 0], [0.5, 25]), "chance: 25 is outside 0 to 1"),
        (([1, 0], [1, 0], 0.0, ["a", "a"]), "clusters: one holds all items; an error needs at least two"),
        (([1, 0, 1], [1, 0, 1], 0.0, ["a", None, "b"]), "clusters: item 1 has no label"),
        (([1, 0, 1], [1, 0, 1], 0.0, [1.0, 2.0, NAN]), "clusters: item 2 has no label"),
    ],
)
def test_what_does_not_pair_up_is_named(scores, problem: str):
    with pytest.raises(ValueError, match=problem):
        Scores.of(*scores)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"teacher: 1 of 2.*student: 1 of 2.*chance: 2 is outside"):
        Scores.of([NAN, 1], [1, NAN], 2)
