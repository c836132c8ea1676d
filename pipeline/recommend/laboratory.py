"""The laboratory's answers, read and checked: which points there are, which items, and what each point scored on each.

Every point answered the teacher's items, in the same order here, so that all comparisons are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.tasks import DIALOGUE, GROUPS, family
from pipeline.knobs import long_scheme, yaml_1_2
from pipeline.knobs.names import unknown
from pipeline.recommend import scores
from pipeline.recommend.point import Point
from pipeline.report.sweep_files import ANSWERS, OF_POINT, REFERENCE

FOLDERS = (Path("sweeps/laboratory"), Path("sweeps/laboratory-quick"))  # where a laboratory is looked for, in order
MAKE = "`make laboratory` runs it (a night on two cores), `make laboratory QUICK=1` a small one (an hour)"
ITEM = ["task", "item", "hash"]
NEEDED = (*ITEM, "correct", "log_likelihoods", "group", "part", "cluster", "level", "answer", "right_probability")
CALIBRATED = ("emergent", "self-calibration")  # group and part of what is worked out from all items with choices


@dataclass(frozen=True)
class Part:
    """What is judged as one: a sub-task.

    Attributes:
        group, name. rows: places of its items, int64 [items]. score: by which its bits are chosen.
    """

    group: str
    name: str
    rows: np.ndarray
    score: str = scores.ACCURACY

    @property
    def label(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Laboratory:
    """Points and what they scored.

    Attributes:
        items: a row an item, with columns task, item, hash, group, part, level, chance and cluster (numbered anew, so
            that no two tasks share a number, but those of one family: attacked and clean items come as one).
        points: in the sweep's order, without the teacher.
        scored: of each point's name and each score, float64 [items]; the teacher's, too.
    """

    items: pd.DataFrame
    points: tuple[Point, ...]
    scored: Mapping[str, Mapping[str, np.ndarray]]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """In the order of the groups and then of the items; self-calibration last of its group, unless tasks of it were
        asked."""
        columns = ["group", "part"]
        labels = self.items[columns].drop_duplicates().astype(str).itertuples(index=False, name=None)
        codes = self.items.groupby(columns, sort=False).ngroup().to_numpy()
        parts = [Part(group, name, np.flatnonzero(codes == i), _score(group)) for i, (group, name) in enumerate(labels)]
        known = np.flatnonzero(np.isfinite(self.scored[REFERENCE][scores.SKILL]))
        if len(known) > 1 and CALIBRATED not in [(part.group, part.name) for part in parts]:
            parts.append(Part(*CALIBRATED, known, scores.SKILL))
        order = [*dict.fromkeys([*GROUPS, *(part.group for part in parts)])]
        return tuple(sorted(parts, key=lambda part: order.index(part.group)))

    @cached_property
    def wholes(self) -> tuple[Part, ...]:
        """All items of each group, in the order of the groups, by accuracy where its parts are."""
        groups = self.items["group"].astype(str)
        names = [*dict.fromkeys([*GROUPS, *groups])]
        rows = {name: np.flatnonzero(groups == name) for name in names}
        return tuple(Part(name, "all", mine, _score(name)) for name, mine in rows.items() if len(mine))

    @cached_property
    def chance(self) -> np.ndarray:
        """What guessing scores, float64 [items]."""
        return self.items["chance"].to_numpy()

    @cached_property
    def clusters(self) -> np.ndarray:
        """Of each item, int64 [items]."""
        return self.items["cluster"].to_numpy()

    def named(self, names: Sequence[str]) -> tuple[Part, ...]:
        """The parts that these groups, sub-tasks and tasks have, of a task its items alone; without names, all.

        Raises:
            ValueError: there is no such name: all of them, with what was meant.
        """
        tasks = self.items["task"].to_numpy()
        known = [*dict.fromkeys([part.group for part in self.parts] + [part.name for part in self.parts] + [*tasks])]
        if problems := [unknown("task or group", name, known) for name in names if name not in known]:
            raise ValueError("; ".join(problems))
        chosen, sub_tasks = list[Part](), {part.name for part in self.parts}
        for part in self.parts:
            if not names or part.group in names or part.name in names:
                chosen.append(part)
                continue
            mine = [name for name in dict.fromkeys(tasks[part.rows]) if name in names]
            if part.score == scores.ACCURACY:
                labels = {name: f"{name} of {part.name}" if name in sub_tasks else name for name in mine}
                chosen += [
                    Part(part.group, label, part.rows[tasks[part.rows] == name]) for name, label in labels.items()
                ]
        return tuple(chosen)


def _score(group: str) -> str:
    """By which a group's bits are chosen: of a conversation by the share of tokens, and not by whole answers alone."""
    return scores.PROBABILITY if group == DIALOGUE else scores.ACCURACY


def where(given: Path | None) -> Path:
    """The file of answers that is meant: a file, one in a folder, or the first laboratory that there is.

    Raises:
        ValueError: there is none.
    """
    if given is None:
        files = [folder / ANSWERS for folder in FOLDERS]
        if not (there := [file for file in files if file.is_file()]):
            raise ValueError(f"there is no laboratory yet ({files[0]}); {MAKE}")
        return there[0]
    file = given / ANSWERS if given.is_dir() else given
    if file.is_file():
        return file
    if given.is_dir():
        raise ValueError(f"{given} holds no {ANSWERS}; {MAKE}")
    raise ValueError(f"{given} is neither a folder nor a file; a laboratory is a folder with {ANSWERS}: {FOLDERS[0]}")


def load(file: Path) -> Laboratory:
    """Read a file of answers, and points.csv beside it, where there is one.

    Raises:
        ValueError: it is no such table, lacks columns or the teacher, or points did not answer the teacher's items.
    """
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no table of answers: {error}") from None
    return of_table(table, _divergences(file.with_name("points.csv")), str(file))


def of_table(table: pd.DataFrame, kl: Mapping[str, float] | None = None, name: str = ANSWERS) -> Laboratory:
    """As `load`, of a table.

    Args:
        kl: of each point to the teacher, nats a token, on other text than the items. name: of the table, in messages.
    """
    if absent := [column for column in (*OF_POINT, *NEEDED) if column not in table]:
        raise ValueError(f"{name} has no column {', '.join(absent)}; an older evaluate wrote it. Run it anew: {MAKE}")
    answers = {str(point): part.reset_index(drop=True) for point, part in table.groupby("point", sort=False)}
    if REFERENCE not in answers or len(answers) < 2:
        raise ValueError(f"{name} holds no answers of the teacher and of a point beside it; {MAKE}")
    items = answers[REFERENCE][ITEM]
    others = [point for point, part in answers.items() if not part[ITEM].equals(items)]
    if others:
        raise ValueError(f"{name}: {', '.join(others)} did not answer the teacher's items. Run it anew: {MAKE}")
    points = tuple(_point(point, part.iloc[0], kl or {}) for point, part in answers.items() if point != REFERENCE)
    scored = {point: scores.of_answers(part) for point, part in answers.items()}
    return Laboratory(_items(answers[REFERENCE]), points, scored)


def _items(answers: pd.DataFrame) -> pd.DataFrame:
    told = answers[[*ITEM, "group", "part", "level"]]
    labels = answers["task"].map(family) + " " + answers["cluster"].astype(str)
    return told.assign(chance=scores.chance(answers), cluster=pd.factorize(labels)[0])


def _point(name: str, row: Any, kl: Mapping[str, float]) -> Point:
    grids = long_scheme.of(yaml_1_2.parse(row["scheme"]))
    return Point(name, str(row["scheme"]), str(row["method"]), str(row["rotation"]), grids, kl.get(name, float("nan")))


def _divergences(file: Path) -> dict[str, float]:
    """The KL of each point, as far as points.csv has one."""
    if not file.is_file():
        return {}
    table = pd.read_csv(file)
    return dict(zip(table["experiment"], table["kl"], strict=True)) if {"experiment", "kl"} <= {*table} else {}
