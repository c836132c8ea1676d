"""One scheme for the parts that are asked for: the least bits that are shown to lose no more than the margin on any.

Schemes are tested in the order of their KL to the teacher, the least first, at the full level, and the first that is
not within ends it: as the KL is of other text than the items, the order was fixed before. Without a KL they go by their
bits, the most first. Of those that passed, the one with the fewest bits of weights, then of inputs, then of the KV
cache is recommended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.recommend.judged import Judge, Together, together
from pipeline.recommend.laboratory import Part
from pipeline.recommend.least import KINDS, by_kl
from pipeline.recommend.point import Point
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, WITHIN

FLOAT = 16  # bits that float counts as


@dataclass(frozen=True)
class Choice:
    """The scheme that is recommended.

    Attributes:
        point: None where nothing is to be said: no such scheme was measured, or all are shown to lose more.
        shown: whether it is shown to be within on all parts that have a signal. evidence: what it shows.
        tested, candidates: points.
    """

    point: Point | None
    shown: bool
    evidence: Together | None
    tested: int
    candidates: int


def cost(point: Point) -> tuple[int, ...]:
    """What the fewest bits are told by: of weights, then of inputs, then of the cache."""
    return tuple(bits or FLOAT for bits in point.bits)


def candidates(points: Sequence[Point], kind: str | None) -> list[Point]:
    """The points that quantize what is asked for, in the order of the test; one for each choice of bits.

    Args:
        kind: of KINDS: weights alone, or weights and that; None: all three, or whatever there is where none has all.
    """
    wanted = {0, 1, 2} if kind is None else {0, [*KINDS].index(kind)}
    quantized = {point.name: {i for i, bits in enumerate(point.bits) if bits} for point in points}
    mine = [point for point in points if quantized[point.name] == wanted]
    if kind is None and not mine:
        mine = list(points)
    first: dict[tuple[int, ...], Point] = {}
    for point in sorted(mine, key=by_kl):
        first.setdefault(point.bits, point)
    return sorted(first.values(), key=lambda point: (by_kl(point), *(-bits for bits in cost(point))))


def choose(judge: Judge, parts: Sequence[Part], kind: str | None = None) -> Choice:
    """The recommendation, shown or not."""
    tested = candidates(judge.laboratory.points, kind)
    evidence = {point.name: together(judge, point, parts) for point in tested}
    passed: list[Point] = []
    for point in tested:
        if evidence[point.name].verdict != WITHIN:
            break
        passed.append(point)
    open_ = [point for point in tested if evidence[point.name].verdict not in (BEYOND, NO_SIGNAL)]
    best = min(passed or open_, key=cost, default=None)
    count = min(len(passed) + 1, len(tested))
    return Choice(best, bool(passed), evidence[best.name] if best else None, count, len(tested))
