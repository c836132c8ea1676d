"""The shipped benchmark files: enough items, none twice, no answer that its place or length gives away."""

import collections
import json
import math
from pathlib import Path

import pytest

from pipeline.evaluation.selection import check_folder

SHIPPED = Path(__file__).parents[3] / "data" / "benchmarks"
CHANCE = {"piqa": 2, "winogrande": 2, "hellaswag": 4, "openbookqa": 4, "arc_easy": 4, "arc_challenge": 4}


def rows_of(task: str) -> list[dict]:
    return [json.loads(line) for line in (SHIPPED / f"{task}.jsonl").read_text(encoding="utf-8").split("\n") if line]


def question_of(row: dict) -> str:
    return next(row[key] for key in ("goal", "ctx", "sentence", "question_stem", "question") if key in row)


def choices_of(row: dict) -> list[str]:
    if "choices" in row:
        return row["choices"]["text"]
    return row.get("endings") or [row[key] for key in ("sol1", "sol2", "option1", "option2") if key in row]


def right_of(task: str, row: dict) -> int:
    """Index of the right choice."""
    if "choices" in row:
        return row["choices"]["label"].index(row["answerKey"])
    return int(row["answer"]) - 1 if task == "winogrande" else int(row["label"])


@pytest.mark.parametrize("task", CHANCE)
def test_there_are_enough_items_in_the_harness_schema(task: str):
    check_folder(SHIPPED, [task])
    assert len(rows_of(task)) >= 60


@pytest.mark.parametrize("task", CHANCE)
def test_no_question_comes_twice(task: str):
    asked = [" ".join(question_of(row).casefold().split()) for row in rows_of(task)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("task", CHANCE)
def test_every_place_is_the_right_one_about_as_often(task: str):
    counts = collections.Counter(right_of(task, row) for row in rows_of(task))
    assert sorted(counts) == list(range(CHANCE[task]))
    assert max(counts.values()) - min(counts.values()) <= 0.2 * sum(counts.values()) / CHANCE[task]


@pytest.mark.parametrize("task", CHANCE)
def test_the_choices_of_an_item_differ(task: str):
    for row in rows_of(task):
        choices = [choice.strip().casefold() for choice in choices_of(row)]
        assert len(choices) == CHANCE[task]
        assert all(choices)
        assert len(set(choices)) == len(choices)


@pytest.mark.parametrize("longest", [True, False])
@pytest.mark.parametrize("task", CHANCE)
def test_no_answer_is_given_away_by_its_length(task: str, longest: bool):
    """The right choice is the longest (shortest) no more often than by chance, within three standard deviations."""
    rows, sign = rows_of(task), 1 if longest else -1
    lengths = [[sign * len(choice) for choice in choices_of(row)] for row in rows]
    right = sum(
        item_lengths[right_of(task, row)] == max(item_lengths) for row, item_lengths in zip(rows, lengths, strict=True)
    )
    # Several may be of that length.
    chances = [item_lengths.count(max(item_lengths)) / len(item_lengths) for item_lengths in lengths]
    assert right <= sum(chances) + 3 * math.sqrt(sum(p * (1 - p) for p in chances))
