"""What a made task is made of: rows of a context and choices, the right one at each place equally often."""

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypedDict, TypeVar

T = TypeVar("T", bound=Hashable)
TRIES = 10_000  # draws in a row that may repeat others before there are said to be no more


class Row(TypedDict):
    """One question. ' ' + a choice continues the context.

    answer: index of the right choice. cluster: rows that belong together share it. level: what the task varies, or ''.
    """

    context: str
    choices: list[str]
    answer: int
    cluster: int
    level: str


class Places:
    """Where the next right choice goes: each place once in every `count` calls, for each level on its own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._left: dict[Hashable, list[int]] = {}

    def next(self, count: int, level: Hashable = "") -> int:
        """An index below count."""
        left = self._left.setdefault((level, count), [])
        if not left:
            left += self._rng.sample(range(count), count)
        return left.pop()


def placed(right: str, wrong: Sequence[str], place: int) -> list[str]:
    """The choices, with the right one at its place."""
    return [*wrong[:place], right, *wrong[place:]]


def distinct(draw: Callable[[], T], key: Callable[[T], Hashable] = lambda drawn: drawn) -> Iterator[T]:
    """What draw gives, without what has a key that came before.

    Raises:
        ValueError: it has nothing new.
    """
    keys: set[Hashable] = set()
    while True:
        for _ in range(TRIES):
            candidate = draw()
            if key(candidate) not in keys:
                break
        else:
            raise ValueError(f"no more than {len(keys)} differ")
        keys.add(key(candidate))
        yield candidate
