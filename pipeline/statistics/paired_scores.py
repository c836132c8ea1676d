"""What a teacher and a student scored on the same items, checked before anything is worked out of it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Scores:
    """Scores that pair up, float64 [items] each.

    Attributes:
        teacher, student: more is better. chance: what guessing scores.
        clusters: the group of each item, 0 to groups - 1: int64 [items].
    """

    teacher: np.ndarray
    student: np.ndarray
    chance: np.ndarray
    clusters: np.ndarray

    @classmethod
    def of(
        cls, teacher: ArrayLike, student: ArrayLike, chance: ArrayLike = 0.0, clusters: ArrayLike | None = None
    ) -> "Scores":
        """From lists or arrays, bool or float [items]; one chance for all items, or one each; labels of any kind.

        Raises:
            ValueError: what does not pair up, all of it at once.
        """
        given = {"teacher": _floats(teacher), "student": _floats(student), "chance": _floats(chance)}
        if not given["chance"].ndim:
            given["chance"] = np.full(given["teacher"].shape, given["chance"])
        labels = np.arange(len(given["teacher"])) if clusters is None else np.asarray(clusters)
        problems = _of_shape(given | {"clusters": labels}) or _of_values(given)
        if not problems:
            codes = pd.factorize(labels)[0]
            problems = _of_clusters(codes)
        if problems:
            raise ValueError("; ".join(problems))
        return cls(given["teacher"], given["student"], given["chance"], codes)

    @property
    def right_or_wrong(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.teacher, (0, 1)).all() and np.isin(self.student, (0, 1)).all())


def _floats(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _of_shape(columns: dict[str, np.ndarray]) -> list[str]:
    problems = [f"{name}: shape {column.shape}, not [items]" for name, column in columns.items() if column.ndim != 1]
    lengths = {name: len(column) for name, column in columns.items() if column.ndim == 1}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(f"other numbers of items: {counts}; keep the items that all have, in one order")
    elif lengths and min(lengths.values()) < 2:
        problems.append(f"items: {min(lengths.values())}; an error needs at least two")
    return problems


def _of_values(columns: dict[str, np.ndarray]) -> list[str]:
    problems = []
    for name, column in columns.items():
        (places,) = np.nonzero(~np.isfinite(column))
        if len(places):
            first = f"item {places[0]}: {column[places[0]]}"
            problems.append(f"{name}: {len(places)} of {len(column)} are not finite ({first}); leave these items out")
    outside = columns["chance"][(columns["chance"] < 0) | (columns["chance"] > 1)]
    if len(outside):
        problems.append(f"chance: {outside[0]:g} is outside 0 to 1; one over the number of choices, or 0")
    return problems


def _of_clusters(codes: np.ndarray) -> list[str]:
    problems = []
    if (codes < 0).any():
        problems.append(f"clusters: item {int(np.argmax(codes < 0))} has no label; give it one, if only its own")
    if codes.max() < 1:
        problems.append("clusters: one holds all items; an error needs at least two")
    return problems
