"""docs/made-tasks.md says of every task what the table and the code say."""

import re
from pathlib import Path

import pytest

from pipeline.evaluation.made.dialogue import make_dialogues
from pipeline.evaluation.made.instructions import make_instructions
from pipeline.evaluation.made.table import MADE, Row, make

PAGE = (Path(__file__).parents[4] / "docs" / "made-tasks.md").read_text(encoding="utf-8")


def shown(row: Row) -> str:
    """A row as the page shows it."""
    marks = ["+" if place == row["answer"] else "-" for place in range(len(row["choices"]))]
    choices = [f"{mark} {choice}" for mark, choice in zip(marks, row["choices"], strict=True)]
    return "\n".join(f"    {line}" for line in [*row["context"].split("\n"), *choices])


@pytest.mark.parametrize("name", MADE)
def test_the_example_of_a_task_is_one_that_it_makes(name: str):
    section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert any(f"\n{shown(row)}\n" in section for row in make(name, 0, 2))


@pytest.mark.parametrize("name", MADE)
def test_the_table_has_its_group_chance_and_items(name: str):
    (line,) = re.findall(rf"^\| {name} \|.*", PAGE, re.MULTILINE)
    _, task, where, chance, items, *_ = [cell.strip() for cell in line.split("|")]
    choices = len(make(name, 0, 1)[0]["choices"])
    assert (task, where) == (name, f"{MADE[name].group}, {MADE[name].part}")
    assert (chance, items) == (f"1 in {choices}", str(MADE[name].items))


def test_the_examples_of_instructions_and_dialogues_are_ones_that_are_made():
    section = PAGE.partition("\n## Instructions and dialogues\n")[2].partition("\n## ")[0]
    shown_lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert shown_lines[0] in [instruction.prompt for instruction in make_instructions(0, 100)]
    assert tuple(shown_lines[1:]) in make_dialogues(0, 100)
