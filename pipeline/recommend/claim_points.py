"""The points and items that a claim speaks of, found among those of the laboratory."""

import re
from collections.abc import Sequence

import numpy as np

from pipeline.recommend import scores
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import Part
from pipeline.recommend.point import Point
from pipeline.statistics.non_inferiority import NO_SIGNAL

LONG = "long"
LINES = re.compile(r"(\d+)( lines)?")


def plain(judge: Judge, bits: tuple[int, int, int], method: str) -> Point | None:
    """The point with these bits, not rotated, its inputs a scale a token, without exceptions."""
    (point, *_) = [*_candidates(judge, bits, method), None]
    return point


def _candidates(judge: Judge, bits: tuple[int, int, int], method: str) -> list[Point]:
    """Those with groups of weights first, as the paper has them; of KV caches the finest last, and behind it those with
    keys per channel, which the paper has not."""
    mine = [
        point
        for point in judge.laboratory.points
        if (point.bits, point.method, point.rotation) == (bits, method, "none")
        and not point.grids.overrides
        and (point.grids.activations.dynamic or not bits[1])
    ]
    return sorted(mine, key=_order)


def _order(point: Point) -> tuple[bool, bool, int]:
    cache = point.grids.kv_cache
    return not point.grids.weights.group, cache.keys == "channel", cache.group


def alike(judge: Judge, bits: Sequence[tuple[int, int, int]], methods: tuple[str, str]) -> tuple[Point, Point] | None:
    """Two points whose weights come in the same groups."""
    ones, others = (_candidates(judge, *which) for which in zip(bits, methods, strict=True))
    for one in ones:
        for other in others:
            if one.grids.weights.group == other.grids.weights.group:
                return one, other
    return None


def whole(judge: Judge, group: str) -> Part | None:
    """All of a group's items, by accuracy."""
    return next((part for part in judge.laboratory.wholes if part.group == group and len(part.rows) > 1), None)


def with_signal(judge: Judge) -> np.ndarray:
    """The items of all parts on which the teacher is above chance, by accuracy."""
    (first, *_) = judge.laboratory.points
    items = [
        part.rows
        for part in judge.laboratory.parts
        if part.score == scores.ACCURACY and judge.verdict(first, part).verdict != NO_SIGNAL
    ]
    return np.sort(np.concatenate(items)) if items else np.array([], dtype=np.int64)


def by_length(judge: Judge) -> list[Part]:
    """The lengths in lines of long texts, from short to long, but those of one text alone, which has no error.

    A level is a length where it counts lines, "64 lines", or is a number of the sub-task lines; others are places.
    """
    items = judge.laboratory.items
    levels = items["level"].astype(str)
    counted = (items["group"] == LONG) & (levels.str.endswith(" lines") | (items["part"] == "lines"))
    lengths = levels.where(counted, "").map(lambda level: int(match[1]) if (match := LINES.fullmatch(level)) else 0)
    parts = [Part(LONG, f"{length} lines", np.flatnonzero(lengths == length)) for length in sorted({*lengths} - {0})]
    return [part for part in parts if len({*judge.laboratory.clusters[part.rows]}) > 1]
