"""Whether each variant's loss on each task is shown to be within a margin of the teacher's score, item by item.

The verdicts are those of `pipeline.statistics.non_inferiority`, on accuracy: whether the answer is right. Where all
items of a task have two choices, one more line is on the probability of the right one, exp(its log-likelihood) over the
sum of both, which varies less. Which is right follows from whether the chosen one was; of more choices the items do not
keep it. Chance is one over an item's number of choices, and 0 where an answer is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from pipeline.evaluation.items import INSTRUCTIONS
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
        score: ACCURACY or PROBABILITY. chance: what guessing scores, mean over the items.
        gained, lost: items that the variant alone, or the teacher alone, answers correctly.
    """

    task: str
    score: str
    variant: str
    verdict: Verdict
    chance: float
    gained: int
    lost: int


def section(answers: Mapping[str, pd.DataFrame], margin: float) -> dict[str, Any]:
    """For the page's template: title, a sentence a variant, table (lines of a task's name, facts and cells) and note.

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
    """By task, in the order of their names, then by score, then by variant.

    Raises:
        ValueError: variants did not answer the teacher's items, or items keep no likelihoods of their choices: all that
            are so; or what `relative` refuses, a single item of a task for one.
    """
    tables = {name: answers[name].set_index(ITEM).sort_index() for name in (TEACHER, *VARIANTS)}
    if problems := _other_items(tables) or _without_choices(tables):
        raise ValueError("; ".join(problems) + "; `dvc repro -f --single-item evaluate@VARIANT` scores one anew")
    known = []
    for task in tables[TEACHER].index.unique("task"):
        of_task = {name: table.loc[[task]] for name, table in tables.items()}
        choices = of_task[TEACHER]["log_likelihoods"].map(len).to_numpy()
        chance = np.zeros(len(choices)) if task == INSTRUCTIONS else 1 / choices
        right = {name: table["correct"].to_numpy(bool) for name, table in of_task.items()}
        scores = {ACCURACY: right}
        if (choices == 2).all():
            scores[PROBABILITY] = {name: probability_of_right(table) for name, table in of_task.items()}
        for score, values in scores.items():
            for variant in VARIANTS:
                verdict = relative(values[TEACHER], values[variant], margin, chance)
                gained, lost = _flips(right[TEACHER], right[variant])
                known.append(Loss(str(task), score, variant, verdict, float(chance.mean()), gained, lost))
    return known


def probability_of_right(answers: pd.DataFrame) -> np.ndarray:
    """What a model gives the right one of two choices, float64 [items].

    Args:
        answers: columns prediction, correct and log_likelihoods of `Items.answers`, two likelihoods an item.
    """
    given = special.softmax(np.stack(answers["log_likelihoods"].tolist()).astype(float), axis=1)
    prediction = answers["prediction"].to_numpy()
    right = np.where(answers["correct"].to_numpy(bool), prediction, 1 - prediction)
    return given[np.arange(len(given)), right]


def _flips(teacher: np.ndarray, variant: np.ndarray) -> tuple[int, int]:
    return int((variant & ~teacher).sum()), int((teacher & ~variant).sum())


def _other_items(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    first = tables[TEACHER].index
    return [f"{name} did not answer the teacher's items" for name in VARIANTS if not tables[name].index.equals(first)]


def _without_choices(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Chance is not known where an item has no choices, or one."""
    chosen = {name: table.drop(INSTRUCTIONS, level="task", errors="ignore") for name, table in tables.items()}
    few = {name: table.index[table["log_likelihoods"].map(len) < 2] for name, table in chosen.items()}
    return [
        f"{name}: {len(items)} items of {', '.join(items.unique('task'))} keep the likelihoods of no two choices, so "
        "their chance level is not known"
        for name, items in few.items()
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
    lines = []
    for start in range(0, len(known), len(VARIANTS)):
        mine = known[start : start + len(VARIANTS)]
        verdict = mine[0].verdict
        lines.append(
            {
                "task": mine[0].task,
                "score": mine[0].score,
                "facts": f"teacher {100 * verdict.teacher:.1f}{BLANK}%, chance {100 * mine[0].chance:.3g}{BLANK}%, "
                f"{verdict.items}{BLANK}items",
                "cells": [_cell(loss) for loss in mine],
            }
        )
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
        "has above guessing. Gained and lost: answers that turned right, and that turned wrong."
    )
    if not probabilities:
        return text
    return (
        f"{text} The probability of the right choice is known for tasks with two choices. It is another score, not "
        "a better test of accuracy, and it varies less, so fewer items do."
    )
