"""The right choice is who a simulation of the story leaves the thing with, and no shortcut finds it."""

import collections
import re

import pytest

from pipeline.evaluation.made.table import make

ROWS = make("state", 0, 600)


def simulated(context: str) -> tuple[dict[str, str], dict[str, str], str, list[str]]:
    """Who has what in the end, who had it just before, the thing that is asked for, and who is named, in order."""
    holders, before, named = {}, {}, []
    for thing, person in re.findall(r"^The (\w+ \w+) goes to (\w+)\.$", context, re.MULTILINE):
        if thing in holders:
            before[thing] = holders[thing]
        holders[thing] = person
        named.append(person)
    (asked,) = re.findall(r"^In the end:\nThe (\w+ \w+) goes to$", context, re.MULTILINE)
    return holders, before, asked, named


def test_the_right_choice_is_who_has_it_in_the_end():
    for row in ROWS:
        holders, before, asked, named = simulated(row["context"])
        assert len(named) - len(holders) == int(row["level"].split()[0])
        right = holders[asked]
        assert row["choices"][row["answer"]] == f"{right}."
        assert {choice.removesuffix(".") for choice in row["choices"]} <= {*named}
        if asked in before:
            assert f"{before[asked]}." in row["choices"]


@pytest.mark.parametrize("level", ["1 step", "2 steps", "4 steps"])
def test_each_place_in_the_order_of_names_is_right_equally_often(level: str):
    ranks = collections.Counter()
    rows = [row for row in ROWS if row["level"] == level]
    for row in rows:
        order = sorted(row["choices"], key=row["context"].index)
        ranks[order.index(row["choices"][row["answer"]])] += 1
    assert all(abs(ranks[rank] - len(rows) / 4) <= 1 for rank in range(4))


def test_things_that_were_passed_on_are_asked_for_as_well_as_others():
    moved = [asked in before for _, before, asked, _ in (simulated(row["context"]) for row in ROWS)]
    assert 0.3 < sum(moved) / len(moved) < 0.9
