"""Whether each variant's loss on each task is shown to be within a margin of the teacher's score, item by item.

The verdicts are those of `pipeline.statistics.non_inferiority`, over clusters where items come as one, on accuracy:
whether the answer is right. Where it is known which answer is right, one more line is on the probability of it, as the
task's metric ranks the answers, which varies less. What guessing scores is as the table of tasks has it: mostly one
over an item's number of choices, and 0 where an answer is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation import tasks
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, NOT_SHOWN, WITHIN, Verdict, relative

TEACHER = "teacher"
NAMES = {"rtn": "RTN", "ptq": "PTQ", "student": "student"}
VARIANTS = (*NAMES,)
ACCURACY, PROBABILITY = "accuracy", "probability of the right choice"
ITEM = ["task", "item", "hash"]
BLANK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Loss:
    """What a variant loses on a task.

    Attributes:
        group, part: of the task. score: ACCURACY or PROBABILITY. chance: what guessing scores, mean over the items.
        gained, lost: items that the variant alone, or the teacher alone, answers correctly.
    """

    group: str
    part: str
    task: str
    score: str
    variant: str
    verdict: Verdict
    chance: float
    gained: int
    lost: int


def section(answers: Mapping[str, pd.DataFrame], margin: float) -> dict[str, Any]:
    """For the page's template: title, a sentence a variant, table (lines of a task's name, facts and cells, under a
    head where a part of a group begins) and note.

    Args:
        answers: of the teacher and VARIANTS, as `Items.answers`. margin: share of the teacher's score, between 0 and 1.

    Raises:
        ValueError: as `losses`.
    """
    known = losses(answers, margin)
    return {
        "title": f"Is it as good? Within {100 * margin:g} %",
        "told": [_counted(variant, known) for variant in VARIANTS],
        "variants": [NAMES[variant] for variant in VARIANTS],
        "lines": _lines(known),
        "note": _note(margin, any(loss.score == PROBABILITY for loss in known)),
    }


def losses(answers: Mapping[str, pd.DataFrame], margin: float) -> list[Loss]:
    """By group and part, in their order; then by task, in the order of their names, by score, and by variant.

    Raises:
        ValueError: variants did not answer the teacher's items, or items keep no likelihoods of their answers: all that
            are so; or what `relative` refuses, a single item of a task for one.
    """
    tables = {name: answers[name].set_index(ITEM).sort_index() for name in (TEACHER, *VARIANTS)}
    if problems := _other_items(tables) or _without_choices(tables):
        raise ValueError("; ".join(problems) + "; `dvc repro -f --single-item evaluate@VARIANT` scores one anew")
    known = []
    for group, part, task in ordered(answers[TEACHER]):
        of_task = {name: table.loc[[task]] for name, table in tables.items()}
        counts = of_task[TEACHER]["log_likelihoods"].map(len)
        chance = counts.map(lambda count, task=task: tasks.chance(task, count)).to_numpy(float)
        right = {name: table["correct"].to_numpy(bool) for name, table in of_task.items()}
        scores = {ACCURACY: right}
        if not any(table["right_probability"].isna().any() for table in of_task.values()):
            scores[PROBABILITY] = {name: table["right_probability"].to_numpy() for name, table in of_task.items()}
        clusters = of_task[TEACHER]["cluster"].to_numpy()
        for score, values in scores.items():
            for variant in VARIANTS:
                verdict = relative(values[TEACHER], values[variant], margin, chance, clusters)
                gained, lost = _flips(right[TEACHER], right[variant])
                known.append(Loss(group, part, task, score, variant, verdict, float(chance.mean()), gained, lost))
    return known


def ordered(answers: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Group, part and name of each task, by group as the table of tasks has them, then by name."""
    names = answers[["group", "part", "task"]].drop_duplicates().itertuples(index=False)
    order = {group: i for i, group in enumerate(tasks.GROUPS)}
    texts = [(str(group), str(part), str(task)) for group, part, task in names]
    return sorted(texts, key=lambda text: (order.get(text[0], len(order)), *text))


def _flips(teacher: np.ndarray, variant: np.ndarray) -> tuple[int, int]:
    return int((variant & ~teacher).sum()), int((teacher & ~variant).sum())


def _other_items(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    first = tables[TEACHER].index
    return [f"{name} did not answer the teacher's items" for name in VARIANTS if not tables[name].index.equals(first)]


def _without_choices(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Chance is not known where an item keeps nothing of the answers that it is chosen from."""
    chosen = {
        name: table.loc[[not tasks.in_writing(task) for task in table.index.get_level_values("task")]]
        for name, table in tables.items()
    }
    none = {name: table.index[table["log_likelihoods"].map(len) < 1] for name, table in chosen.items()}
    return [
        f"{name}: {len(items)} items of {', '.join(items.unique('task'))} keep no likelihoods, so their chance level "
        "is not known"
        for name, items in none.items()
        if len(items)
    ]


def _counted(variant: str, known: Sequence[Loss]) -> str:
    """How often each verdict on accuracy fell."""
    mine = [loss.verdict.verdict for loss in known if loss.variant == variant and loss.score == ACCURACY]
    counts = [f"{verdict} on {mine.count(verdict)}" for verdict in (WITHIN, BEYOND, NOT_SHOWN, NO_SIGNAL)]
    told = ", ".join(count for count in counts if not count.endswith(" 0"))
    return f"{NAMES[variant]}: {told} of {len(mine)} task{'s' if len(mine) > 1 else ''}"


def _lines(known: Sequence[Loss]) -> list[dict[str, Any]]:
    """A line a task and score, a cell a variant."""
    lines: list[dict[str, Any]] = []
    above = ""
    for start in range(0, len(known), len(VARIANTS)):
        mine = known[start : start + len(VARIANTS)]
        verdict, head = mine[0].verdict, ": ".join(filter(None, (mine[0].group, mine[0].part)))
        grouped = "" if verdict.groups == verdict.items else f" in {verdict.groups}{BLANK}clusters"
        lines.append(
            {
                "head": head if head != above else "",
                "task": mine[0].task,
                "score": mine[0].score,
                "facts": f"teacher {100 * verdict.teacher:.1f}{BLANK}%, chance {100 * mine[0].chance:.3g}{BLANK}%, "
                f"{verdict.items}{BLANK}items{grouped}",
                "cells": [_cell(loss) for loss in mine],
            }
        )
        above = head
    return lines


def _cell(loss: Loss) -> dict[str, str]:
    verdict = loss.verdict
    lost = "-"
    if np.isfinite(verdict.loss):
        lost = f"{100 * verdict.loss:z.1f} ± {100 * verdict.loss_error:.1f} %"
    if verdict.verdict != NO_SIGNAL and np.isfinite(verdict.adjusted):
        lost += f" (above{BLANK}chance{BLANK}{100 * verdict.adjusted:z.0f}{BLANK}%)"
    return {
        "variant": NAMES[loss.variant],
        "verdict": verdict.verdict,
        "mark": verdict.verdict.replace(" ", "-"),
        "needs": _needs(verdict),
        "loss": f"loss {lost}",
        "flips": f"{loss.gained} gained, {loss.lost} lost" if loss.score == ACCURACY else "",
    }


def _needs(verdict: Verdict) -> str:
    if verdict.more is None:
        return ""
    return (
        f"needs about {rounded_up(verdict.more):,} more items" if verdict.more else "items enough, so something is lost"
    )


def rounded_up(count: int) -> int:
    """To two digits: more says more than is known."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // unit) * unit


def _note(margin: float, probabilities: bool) -> str:
    share = f"{100 * margin:g} %"
    text = (
        f"How to read it: within, the variant is shown to lose less than {share} of the teacher's score; beyond, it is "
        "shown to lose more; not shown, neither, and so many more items would show it in 4 of 5 cases if nothing is "
        "lost; no signal, the teacher itself is not shown to be above chance. These are one-sided tests at 5 % on the "
        "same items, each for itself: that all tasks are within needs no correction, the best of several does. "
        "± is one standard error, and a loss below 0 is a gain. Above chance: the loss as a share of what the teacher "
        "has above guessing. Items that come as one are a cluster, and clusters are what is sampled. Gained and lost: "
        "answers that turned right, and that turned wrong."
    )
    if not probabilities:
        return text
    return (
        f"{text} The probability of the right choice is taken as the task ranks its choices. It is another score, not "
        "a better test of accuracy, and it varies less, so fewer items do."
    )
