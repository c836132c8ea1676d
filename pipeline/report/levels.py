"""Accuracy by level of a task (how long a text is, how many steps a problem has, which rule is broken), a picture of it
by the length of long texts, and what tasks of pairs come to: clean less attacked, with examples less without.

Errors are over clusters. A variant stands against the teacher item by item, so that its change has an error of its own,
mostly smaller than those of the two accuracies.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation import tasks
from pipeline.report import plots
from pipeline.report.margin import ITEM, NAMES, TEACHER, VARIANTS, ordered
from pipeline.statistics.clustered import Mean, mean

MANY = 12  # levels, more than which are folded
PANELS = 4  # side by side at most
NUMBER = re.compile(r"\d+")
NOTE = (
    "In percent, ± one standard error; 100 in 25: items that come as one are a cluster, and clusters are what is "
    "sampled; one alone has no error. Beside it the change against the teacher, item by item, with its own error."
)
PLOT_NOTE = (
    "Accuracy by the length of the text, or by the place of the answer in it. Bars are one standard error, dotted is "
    "chance."
)
DIFFERENCES_NOTE = (
    "Accuracy of the one less that of the other, in points, over the items that both have, ± one standard error over "
    "pairs."
)


def section(answers: Mapping[str, pd.DataFrame], scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """For the page's template: header, tables (of tasks, of rows), note, plot and differences, each with a note.

    Args:
        answers: of the teacher and VARIANTS, as `Items.answers`, to the same items. scores: of all, as `evaluate`
            writes them.

    Returns:
        None where no task has two levels and none is compared with another.
    """
    by_item = {name: answers[name].set_index(ITEM).sort_index() for name in (TEACHER, *VARIANTS)}
    levelled = {name: levels for *_, name in ordered(answers[TEACHER]) if (levels := of_task(by_item[TEACHER], name))}
    compared = differences(scores)
    if not levelled and not compared:
        return None
    return {
        "header": ["", "items", TEACHER, *NAMES.values()],
        "tables": _tables(by_item, levelled),
        "note": NOTE,
        "plot": picture(by_item, [name for name, levels in levelled.items() if _is_long(by_item, name, levels)]),
        "plot_note": PLOT_NOTE,
        "differences": compared,
        "differences_note": DIFFERENCES_NOTE,
    }


def of_task(by_item: pd.DataFrame, task: str) -> list[str]:
    """The levels of a task in their order: by number where they have one, else as the task compares them or by name;
    none where there are not two.

    Args:
        by_item: answers by task, item and hash.
    """
    names = sorted({*by_item.loc[[task], "level"].astype(str)} - {""})
    compared = list((tasks.TASKS[task].compares if task in tasks.TASKS else None) or ())

    def place(level: str) -> tuple[float, int, str]:
        number = NUMBER.search(level)
        known = compared.index(level) if level in compared else len(compared)
        return (int(number[0]) if number else float("inf")), known, level

    return sorted(names, key=place) if len(names) > 1 else []


def differences(scores: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A header and a row a task that compares two levels, or stands against another; empty where none does."""
    rows = []
    for task, line in tasks.TASKS.items():
        name = f"difference.{task}"
        if name in scores[TEACHER]:
            first, second = line.compares or (task, line.against)
            cells = [_points(scores[variant], name) for variant in (TEACHER, *VARIANTS)]
            rows.append([f"{second} less {first}" if line.against else f"{task}: {second} less {first}", *cells])
    return [["", TEACHER, *NAMES.values()], *rows] if rows else []


def picture(by_item: Mapping[str, pd.DataFrame], names: Sequence[str]) -> str:
    """Accuracy by length, a panel a task, a line a variant, with one standard error; empty without tasks.

    Args:
        by_item: answers of the teacher and each variant. names: of tasks whose levels have numbers.
    """
    high = -(-len(names) // PANELS)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(high, min(len(names), PANELS), sharey=True, squeeze=False).ravel()
        for axis, task in zip(axes, names, strict=False):
            _panel(axis, by_item, task)
        for axis in axes[len(names) :]:
            axis.remove()
        for axis in axes[::PANELS]:
            axis.set_ylabel("accuracy, %")
        axes[min(len(names), PANELS) - 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return plots.svg(draw, (10, 3.2 * high)) if names else ""


def _panel(axis: Axes, by_item: Mapping[str, pd.DataFrame], task: str) -> None:
    levels = of_task(by_item[TEACHER], task)
    for i, variant in enumerate((TEACHER, *VARIANTS)):
        rights = [_mean(_answers(by_item[variant], task, level)) for level in levels]
        axis.errorbar(
            [x + 0.05 * (i - len(VARIANTS) / 2) for x in range(len(levels))],  # bars beside each other
            [100 * right.value for right in rights],
            [100 * right.error for right in rights],
            color=plots.VARIANT_COLOURS[variant],
            label=NAMES.get(variant, variant),
            marker="o",
            ms=4,
            lw=1.6,
            elinewidth=0.8,
        )
    guessed = by_item[TEACHER].loc[[task], "log_likelihoods"].map(lambda choices: tasks.chance(task, len(choices)))
    axis.axhline(100 * guessed.mean(), color="#333333", lw=1, ls=":", label="chance")
    numbers = [NUMBER.search(level) for level in levels]
    axis.set_xticks(range(len(levels)), [number[0] if number else "" for number in numbers])
    axis.set(title=task, xlabel=_unit(task, levels), ylim=(0, 105))


def _unit(task: str, levels: Sequence[str]) -> str:
    """What a task's levels count."""
    unit = NUMBER.sub("", levels[-1]).strip()
    return unit or (tasks.TASKS[task].level if task in tasks.TASKS else "")


def _is_long(by_item: Mapping[str, pd.DataFrame], task: str, levels: Sequence[str]) -> bool:
    """Whether it is of long texts and each of its levels has a number."""
    group = by_item[TEACHER].loc[[task], "group"].iloc[0]
    return group == tasks.LONG and all(NUMBER.search(level) for level in levels)


def _tables(by_item: Mapping[str, pd.DataFrame], levelled: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """One of the tasks with few levels, and each with many for itself, folded."""
    few = [_task(by_item, name, levels) for name, levels in levelled.items() if len(levels) <= MANY]
    many = [(name, levels) for name, levels in levelled.items() if len(levels) > MANY]
    shown = [{"title": "", "folded": False, "tasks": few}] if few else []
    return shown + [
        {"title": f"{name}: {len(levels)} levels", "folded": True, "tasks": [_task(by_item, name, levels)]}
        for name, levels in many
    ]


def _task(by_item: Mapping[str, pd.DataFrame], task: str, levels: Sequence[str]) -> dict[str, Any]:
    first = by_item[TEACHER].loc[[task]].iloc[0]
    of = ": ".join(filter(None, (first["group"], first["part"])))
    return {"name": task, "of": of, "rows": [_row(by_item, task, level) for level in levels]}


def _row(by_item: Mapping[str, pd.DataFrame], task: str, level: str) -> dict[str, Any]:
    answers = {name: _answers(table, task, level) for name, table in by_item.items()}
    teacher = answers[TEACHER]
    groups, count = teacher["cluster"].nunique(), len(teacher)
    cells = [{"accuracy": _text(_mean(teacher)), "apart": ""}]
    for variant in VARIANTS:
        apart = _mean(teacher, answers[variant]["correct"].to_numpy(float) - teacher["correct"].to_numpy(float))
        cells.append({"accuracy": _text(_mean(answers[variant])), "apart": _text(apart, "+z")})
    return {"level": level, "asked": str(count) if groups == count else f"{count} in {groups}", "cells": cells}


def _answers(by_item: pd.DataFrame, task: str, level: str) -> pd.DataFrame:
    of_task = by_item.loc[[task]]
    return of_task[of_task["level"].astype(str) == level]


def _mean(answers: pd.DataFrame, values: np.ndarray | None = None) -> Mean:
    """Of these values of some items, or of whether they are right, over their clusters."""
    right = answers["correct"].to_numpy(float) if values is None else values
    return mean(right, pd.factorize(answers["cluster"])[0])


def _text(of: Mean, sign: str = "") -> str:
    error = f" ± {100 * of.error:.1f}" if np.isfinite(of.error) else ""
    return f"{100 * of.value:{sign}.1f}{error}"


def _points(scores: Mapping[str, float], name: str) -> str:
    if name not in scores:
        return "-"
    return _text(Mean(scores[name], scores.get(f"{name}.stderr", float("nan")), 0), "+z")
