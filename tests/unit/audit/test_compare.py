"""Versions side by side, and the tables that are made of it."""

import pandas as pd
import pytest
import yaml

from pipeline.audit import compare, table
from pipeline.evaluation import items
from tests.unit.audit.conftest import lock_of

METRICS = {"kl.student": 0.2, "kl.student.stderr": 0.01, "perplexity.student": 15.0}


def made(values: list[float]) -> items.Items:
    rows = [
        {"measure": "kl", "document": i, "hash": str(i), "tokens": 9, "value": value} for i, value in enumerate(values)
    ]
    return items.Items(items.answers([]), items.documents(rows))


class Shelf:
    """A cache that has the items of some hashes."""

    def __init__(self, **kl_values: list[float]) -> None:
        self.contents = {f"{letter * 32}.dir": made(values) for letter, values in kl_values.items()}

    def items(self, md5: str) -> items.Items | None:
        return self.contents.get(md5)


def changed(files: dict[str, bytes], letter: str) -> dict[str, bytes]:
    """The same project, whose student has other items."""

    lock = lock_of(files)
    lock["stages"]["evaluate@student"]["outs"][1]["md5"] = f"{letter * 32}.dir"
    return {**files, "dvc.lock": yaml.safe_dump(lock).encode()}


@pytest.fixture
def entries(files: dict[str, bytes], version) -> list[compare.Entry]:
    """Three versions: the second is worse by every document, of the third there are no items."""
    shelf = Shelf(d=[0.1, 0.2, 0.15, 0.1, 0.12, 0.3], e=[0.2, 0.3, 0.24, 0.21, 0.25, 0.4])
    versions = [version(name, changed(files, letter), METRICS) for name, letter in (("a", "d"), ("b", "e"), ("c", "f"))]
    return compare.audit(versions, [None, *versions[:-1]], shelf, lambda: None)  # type: ignore[arg-type]


def test_each_version_is_judged_against_the_one_before(entries: list[compare.Entry]):
    first, second, third = entries
    assert first.pairs == ()
    comparison = second.verdict("student", "kl")
    assert comparison is not None
    assert (comparison.verdict, comparison.pairs) == ("worse", 6)
    assert comparison.difference == pytest.approx(sum([0.1, 0.1, 0.09, 0.11, 0.13, 0.1]) / 6)
    assert third.pairs[0].note == compare.NO_ITEMS
    assert [change.what for change in second.changes] == ["data/items/student"]


def test_the_same_bytes_and_stale_scores_are_not_compared(files: dict[str, bytes], version):
    shelf = Shelf(d=[0.1, 0.2])
    same = [version(name, files, METRICS) for name in ("a", "b")]
    ((_, after),) = [compare.audit(same, [None, same[0]], shelf, lambda: None)]  # type: ignore[arg-type]
    assert after.pairs[0].note == compare.SAME_BYTES
    stale = version("b", {**files, "score.py": b"other"}, METRICS)
    (entry,) = compare.audit([stale], [same[0]], shelf, lambda: None)  # type: ignore[arg-type]
    assert (entry.pairs[0].note, entry.pairs[0].comparisons) == (compare.STALE, ())
    assert table.cell(entry, "student", "kl") == "0.2 ± 0.01 stale"
    (entry,) = compare.audit([same[0]], [stale], shelf, lambda: None)  # type: ignore[arg-type]
    assert (entry.pairs[0].note, entry.pairs[0].comparisons) == (compare.AGAINST_STALE, ())


def test_the_overview_has_scores_with_verdicts_and_changes(entries: list[compare.Entry]):
    header, *rows = table.overview(entries)
    assert header == ["version", "perplexity.student", "kl.student", "top1.student", "accuracy.student", "changed"]
    assert rows[0] == ["a", "15", "0.2 ± 0.01", "-", "-", "-"]
    assert rows[1][2] == "0.2 ± 0.01 worse"
    assert rows[1][5] == "artifacts alone: data/items/student"
    shown = table.text([header, *rows], 60).splitlines()
    assert shown[0].split() == header[:-1]
    assert shown[3] == "    changed: artifacts alone: data/items/student"
    assert all(len(line) <= 60 for line in shown if line.startswith("    "))


def test_every_number_is_in_the_tidy_table(entries: list[compare.Entry]):
    numbers = table.tidy(entries)
    assert list(numbers.columns) == table.COLUMNS
    metrics = numbers[numbers["kind"] == "metric"]
    assert [*metrics["name"]] == ["kl.student", "perplexity.student"] * 3
    (row,) = numbers[(numbers["kind"] == "comparison") & numbers["value"].notna()].to_dict("records")
    assert (row["version"], row["against"], row["verdict"], row["pairs"]) == ("b", "a", "worse", 6)
    assert row["low"] < row["difference"] < row["high"]
    assert row["p"] <= row["corrected"]
    assert pd.isna(numbers[numbers["verdict"] == compare.NO_ITEMS]["value"]).all()


def test_answers_that_changed_are_told_by_task(files: dict[str, bytes], version):
    def answered(*right: bool) -> items.Items:
        rows = [
            {
                "task": "piqa",
                "item": i,
                "hash": str(i),
                "prediction": int(value),
                "correct": value,
                "log_likelihoods": [],
            }
            for i, value in enumerate(right)
        ]
        return items.Items(items.answers(rows), items.documents([]))

    shelf = Shelf()
    shelf.contents = {
        f"{'d' * 32}.dir": answered(True, True, False, False), f"{'e' * 32}.dir": answered(True, False, False, True),
    }  # fmt: skip
    versions = [version(name, changed(files, letter), METRICS) for name, letter in (("a", "d"), ("b", "e"))]
    entries = compare.audit(versions, [None, versions[0]], shelf, lambda: None)  # type: ignore[arg-type]
    header, row = table.flips(entries)
    assert header[1:] == ["task", "items", "changed", "gained", "lost", "verdict"]
    assert row[1:] == ["piqa", "4", "2", "1", "1", "no diff."]
    assert table.aligned([header, row]).splitlines()[1].split()[-6:] == ["4", "2", "1", "1", "no", "diff."]
    told = table.tidy(entries).set_index("name").loc["accuracy.piqa"]
    assert (told["changed"], told["gained"], told["lost"]) == (2, 1, 1)
    assert len(table.flips(entries[:1])) == 1
