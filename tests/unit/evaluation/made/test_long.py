"""The right choice is what the list has under that name, found by a reader of its own; every part of it is asked."""

import collections
import json
import re

import pytest

from pipeline.evaluation.made.table import make


def listed(name: str, context: str) -> tuple[dict[str, str], str]:
    """What a context lists, in its order, and the name that it asks for."""
    if name == "lines":
        (asked,) = re.findall(r"line (\S+): REGISTER is$", context)
        return dict(re.findall(r"^line (\S+): REGISTER is (\d{4})$", context, re.MULTILINE)), asked
    data, question = context.split("\n")
    read = json.loads(data.removeprefix("Data: "))
    (asked,) = re.findall(r'"(\w+)" is$', question)
    return {key: f'"{value}"' for key, value in read.items()}, asked


@pytest.mark.parametrize("name", ["lines", "key_value"])
def test_the_right_choice_is_what_the_list_has(name: str):
    for row in make(name, 0, 96):
        values, asked = listed(name, row["context"])
        assert len(values) == int(row["level"].split()[0])
        assert len({*values.values()}) == len(values)
        assert row["choices"][row["answer"]] == values[asked]
        assert {*row["choices"]} <= {*values.values()}
        assert len({len(choice) for choice in row["choices"]}) == 1


@pytest.mark.parametrize("name", ["lines", "key_value"])
def test_each_quarter_of_a_list_is_asked_once(name: str):
    clusters = collections.defaultdict(list)
    for row in make(name, 0, 96):
        values, asked = listed(name, row["context"])
        clusters[row["cluster"], tuple(values.items())].append([*values].index(asked) * 4 // len(values))
    assert len(clusters) == 24
    assert all(sorted(quarters) == [0, 1, 2, 3] for quarters in clusters.values())
    assert len({tuple(quarters) for quarters in clusters.values()}) > 5


@pytest.mark.parametrize("name", ["lines", "key_value"])
def test_neither_the_first_nor_the_last_choice_in_the_list_is_right_more_often(name: str):
    first, last = 0, 0
    for row in make(name, 0, 960):
        order = sorted(row["choices"], key=row["context"].index)
        first += order[0] == row["choices"][row["answer"]]
        last += order[-1] == row["choices"][row["answer"]]
    assert max(first, last) < 960 / 8 + 3 * (960 / 8 * 7 / 8) ** 0.5
