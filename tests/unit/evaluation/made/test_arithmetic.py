"""The right solution is computed again from the text; each wrong one has an equation, and one only, that is false."""

import collections
import re

from pipeline.evaluation.made.table import make

LOSSES = ("gives", "loses", "sells", "takes")


def computed(text: str) -> list[int]:
    """The totals of a word problem, step by step."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    sentences = text.split(". ")
    totals = [numbers[0] * numbers[1]]
    for sentence, number in zip(sentences[1:-1], numbers[2:], strict=True):
        totals.append(totals[-1] + (-number if any(word in sentence.split() for word in LOSSES) else number))
    return totals


def equations(solution: str) -> list[tuple[bool, int]]:
    """Of each equation whether it is true, and its result."""
    outcomes, carried = [], None
    for equation in solution.removesuffix(".").split("; "):
        left, sign, right, _, result = equation.split()
        value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
        assert carried in (None, int(left))  # each goes on from the result before it
        carried = int(result)
        outcomes.append((value == carried, carried))
    return outcomes


def test_the_right_solution_alone_is_right():
    for row in make("arithmetic", 0, 300):
        text = row["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
        totals = computed(text)
        assert len(totals) == int(row["level"].split()[0])
        assert all(total >= 3 for total in totals)
        for place, choice in enumerate(row["choices"]):
            outcomes = equations(choice)
            if place == row["answer"]:
                assert outcomes == [(True, total) for total in totals]
            else:
                assert [true for true, _ in outcomes].count(False) == 1
                assert outcomes[-1][1] != totals[-1]
        assert len({len(choice) for choice in row["choices"]}) == 1
        assert len({choice.split()[-1] for choice in row["choices"]}) == len(row["choices"])


def test_every_step_is_where_some_go_wrong():
    wrong = collections.Counter()
    for row in make("arithmetic", 0, 300):
        if row["level"] == "3 steps":
            for choice in row["choices"]:
                wrong.update(step for step, (true, _) in enumerate(equations(choice)) if not true)
    assert sum(wrong.values()) == 300
    assert min(wrong[step] for step in range(3)) > 50
