"""Long contexts: a number in a list of lines, a value in a list of keys. How long they are is the level.

Of each list four values are asked, one of each quarter, so that no place is asked more often, and a model that reads
it once can answer all four. The choices are values that stand in the list.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from pipeline.evaluation.made.rows import Places, Row, placed
from pipeline.evaluation.made.words import ADJECTIVES, FIVE_LETTERS, NOUNS

LINES = (8, 16, 32, 64)  # of some 16 tokens each
PAIRS = (8, 24, 72)  # of some 10
QUESTIONS = 4  # about a list
CHOICES = 8


@dataclass(frozen=True)
class _Listing:
    """A list to look things up in: its text, the question about a name, and a value for each name."""

    text: str
    question: str
    values: dict[str, str]


def lines(rng: random.Random, items: int) -> list[Row]:
    """What is the number of a line? Eight choices, all of them numbers of lines."""
    return _rows(rng, items, LINES, _lines, "lines")


def key_value(rng: random.Random, items: int) -> list[Row]:
    """What is the value of a key? Eight choices, all of them values in the list."""
    return _rows(rng, items, PAIRS, _pairs, "pairs")


def _lines(rng: random.Random, size: int) -> _Listing:
    names = [f"{adjective}-{noun}" for adjective, noun in rng.sample([*product(ADJECTIVES, NOUNS)], size)]
    numbers = [str(number) for number in rng.sample(range(1000, 10000), size)]
    listed = "\n".join(f"line {name}: REGISTER is {number}" for name, number in zip(names, numbers, strict=True))
    return _Listing(f"Remember the lines.\n{listed}\n", "line {}: REGISTER is", dict(zip(names, numbers, strict=True)))


def _pairs(rng: random.Random, size: int) -> _Listing:
    sounds = ["".join(letters) for letters in product("bdfgklmnprstvz", "aeiou", "bdgklmnprstz")]
    keys = rng.sample(sounds, size)
    values = [f'"{word}"' for word in rng.sample(FIVE_LETTERS, size)]
    listed = ", ".join(f'"{key}": {value}' for key, value in zip(keys, values, strict=True))
    return _Listing(f"Data: {{{listed}}}\n", 'In the data, the value of "{}" is', dict(zip(keys, values, strict=True)))


def _rows(
    rng: random.Random, items: int, sizes: tuple[int, ...], listing: Callable[[random.Random, int], _Listing], unit: str
) -> list[Row]:
    rows: list[Row] = []
    places = Places(rng)
    cluster = 0
    while len(rows) < items:
        size = sizes[cluster % len(sizes)]
        made = listing(rng, size)
        for name in _asked(rng, [*made.values]):
            right = made.values[name]
            wrong = rng.sample([value for value in made.values.values() if value != right], CHOICES - 1)
            level = f"{size} {unit}"
            place = places.next(CHOICES, level)
            context = made.text + made.question.format(name)
            rows.append(
                {
                    "context": context,
                    "choices": placed(right, wrong, place),
                    "answer": place,
                    "cluster": cluster,
                    "level": level,
                }
            )
        cluster += 1
    return rows[:items]


def _asked(rng: random.Random, names: list[str]) -> Iterator[str]:
    """A name of each quarter of the list, the quarters in any order."""
    for quarter in rng.sample(range(QUESTIONS), QUESTIONS):
        start, end = (len(names) * part // QUESTIONS for part in (quarter, quarter + 1))
        yield names[rng.randrange(start, end)]
