"""Arithmetic in steps: which worked solution of a word problem is right? The number of steps is the level.

The wrong solutions are as long as the right one. Each has a wrong result in one step, and is right from there on.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from pipeline.evaluation.made.rows import Places, Row, distinct, placed
from pipeline.evaluation.made.words import MEN, WOMEN

STEPS = (2, 3, 4)
CHOICES = 4
PLURALS = ("apples", "coins", "stickers", "marbles", "pencils", "cards", "shells", "buttons", "stamps", "cookies")
CONTAINERS = ("bags", "boxes", "jars", "packs", "baskets", "bowls")
ERRORS = (-10, -3, -2, -1, 1, 2, 3, 10)


@dataclass(frozen=True)
class Problem:
    """The text, the first number, and the operation and number of each step."""

    text: str
    start: int
    steps: tuple[tuple[str, int], ...]


def arithmetic(rng: random.Random, items: int) -> list[Row]:
    """Which worked solution is right? Four choices of the same length."""
    places = Places(rng)
    problems = {steps: distinct(_drawn(rng, steps)) for steps in STEPS}
    rows: list[Row] = []
    for number in range(items):
        steps = STEPS[number % len(STEPS)]
        level = f"{steps} steps"
        problem = next(problems[steps])
        place = places.next(CHOICES, level)
        rows.append(
            {
                "context": f"Question: {problem.text}\nAnswer:",
                "choices": placed(solution(problem), near_misses(problem, rng)[: CHOICES - 1], place),
                "answer": place,
                "cluster": number,
                "level": level,
            }
        )
    return rows


def solution(problem: Problem, wrong_step: int = -1, error: int = 0) -> str:
    """The steps as equations, the result of one of them off by an error."""
    total, equations = problem.start, []
    for index, (operation, operand) in enumerate(problem.steps):
        result = _apply(total, operation, operand) + (error if index == wrong_step else 0)
        equations.append(f"{total} {operation} {operand} = {result}")
        total = result
    return "; ".join(equations) + "."


def _apply(total: int, operation: str, operand: int) -> int:
    return {"+": total + operand, "-": total - operand, "*": total * operand}[operation]


def near_misses(problem: Problem, rng: random.Random) -> list[str]:
    """Wrong solutions as long as the right one, in any order: no number below one, no two with one result."""
    right = solution(problem)
    slips = [*product(range(len(problem.steps)), ERRORS)]
    wrong = {right.split()[-1]: right}
    for step, error in rng.sample(slips, len(slips)):
        candidate = solution(problem, step, error)
        numbers = [int(word.strip(";.")) for word in candidate.split() if word.strip("-;.").isdigit()]
        if len(candidate) == len(right) and min(numbers) > 0:
            wrong.setdefault(candidate.split()[-1], candidate)
    return [*wrong.values()][1:]


def _drawn(rng: random.Random, steps: int) -> Callable[[], Problem]:
    return lambda: drawn_problem(rng, steps)


def drawn_problem(rng: random.Random, steps: int) -> Problem:
    """One that has enough near misses."""
    while True:
        problem = _problem(rng, steps)
        if len(near_misses(problem, rng)) >= CHOICES - 1:
            return problem


def _problem(rng: random.Random, steps: int) -> Problem:
    """So many in each of so many containers, then gains and losses; no total is below 3."""
    woman = rng.random() < 0.5
    name, pronoun = (rng.choice(WOMEN), "She") if woman else (rng.choice(MEN), "He")
    things = rng.choice(PLURALS)
    count, size = rng.randint(2, 6), rng.randint(3, 9)
    text = [f"{name} has {count} {rng.choice(CONTAINERS)} with {size} {things} in each of them."]
    total, done = count * size, [("*", size)]
    for _ in range(steps - 1):
        options = [*_GAINS] + ([*_LOSSES] if total > 6 else [])
        phrase = rng.choice(options)
        amount = rng.randint(2, min(total - 3, 20) if phrase in _LOSSES else 20)
        text.append(phrase.format(pronoun=pronoun, amount=amount))
        done.append(("-" if phrase in _LOSSES else "+", amount))
        total = _apply(total, *done[-1])
    text.append(f"How many {things} does {name} have in the end?")
    return Problem(" ".join(text), count, tuple(done))


_GAINS = (
    "{pronoun} finds {amount} more.",
    "{pronoun} gets {amount} more from a friend.",
    "{pronoun} buys {amount} more.",
    "A neighbour brings {amount} more.",
)
_LOSSES = (
    "{pronoun} gives {amount} of them away.",
    "{pronoun} loses {amount} of them.",
    "{pronoun} sells {amount} of them.",
    "A cousin takes {amount} of them.",
)
