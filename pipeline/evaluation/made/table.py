"""The made tasks, one line each: what they belong to, how they are made, and what figure is their own."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.evaluation.made.arithmetic import arithmetic
from pipeline.evaluation.made.attacks import MOST_ATTACKED, attacked
from pipeline.evaluation.made.basic import MOST_AGREEMENT, MOST_WORD_ORDER, agreement, word_order
from pipeline.evaluation.made.ethics import MOST_ETHICS, ethics
from pipeline.evaluation.made.in_context import label_mapping
from pipeline.evaluation.made.long import key_value, lines
from pipeline.evaluation.made.rows import Row as Row
from pipeline.evaluation.made.state import state
from pipeline.knobs.names import look_up

PLENTY = 100_000
"""Rows of a task whose words allow for many more; made, and none twice."""


@dataclass(frozen=True)
class Made:
    """A task.

    group: basic, emergent, trust or long. part: the sub-task of it. make: rows from a random stream and how many; fewer
    are the first of more. compares: two levels whose difference, paired by cluster, is the task's own figure. items:
    rows by default. most: rows that can be made without repeating one.
    """

    group: str
    part: str
    make: Callable[[random.Random, int], list[Row]]
    compares: tuple[str, str] | None
    items: int
    most: int = PLENTY


MADE = {
    "agreement": Made("basic", "understanding", agreement, None, 60, MOST_AGREEMENT),
    "word_order": Made("basic", "understanding", word_order, None, 60, MOST_WORD_ORDER),
    "label_mapping": Made("emergent", "in-context learning", label_mapping, ("0 shots", "12 shots"), 48),
    "state": Made("emergent", "multi-step", state, None, 36),
    "arithmetic": Made("emergent", "multi-step", arithmetic, None, 12),
    "ethics": Made("trust", "ethics", ethics, None, 60, MOST_ETHICS),
    "attacked": Made("trust", "robustness", attacked, ("attacked", "clean"), 60, MOST_ATTACKED),
    "lines": Made("long", "retrieval", lines, None, 16),
    "key_value": Made("long", "retrieval", key_value, None, 12),
}


def make(name: str, seed: int, items: int) -> list[Row]:
    """The rows of a task, items of them: the same for the same seed and name, whatever other tasks are made.

    Raises:
        ValueError: there is no such task; items is not positive, or more than can be made without repeating one.
    """
    made = look_up("made task", name, MADE)
    if not 1 <= items <= made.most:
        raise ValueError(f"made task {name!r}: {items} items were asked for; it has 1 to {made.most}")
    return made.make(random.Random(f"{seed}:{name}"), items)
