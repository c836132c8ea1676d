"""The least bits of weights, of inputs and of the KV cache whose loss is shown to be within the margin, part by part.

A line is what varies alone: bits of the weights, with inputs and cache in float; bits of the inputs, or of the cache,
over the weights with the most bits. Bits go from high to low, and the first that is not within ends it (statistics.
fixed_sequence), so each line is tested at the full level. Of several points with the same bits (methods, groups) the
one with the least KL to the teacher is tested, or the first in the sweep where no KL is known. The items have no say in
that, as the KL is of other text, so it needs no correction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import Part
from pipeline.recommend.point import Point
from pipeline.statistics import fixed_sequence
from pipeline.statistics.non_inferiority import Verdict

KINDS = {"weights": "W", "activations": "A", "kv": "KV"}  # what varies, and its letters in a scheme


@dataclass(frozen=True)
class Line:
    """Where a line ended for a part.

    Attributes:
        group, part: part is empty for all of the group's together. kind: of KINDS.
        enough: the point with the least bits that are shown to be enough; None: none.
        stopped: the point that ended it; None: none did.
        verdict, stopped_verdict: what they show; None for a group.
        failed: of the point that ended it, each part that is not within, with its verdict.
        probability: as `verdict`, on the probability of the right choice, where that varies less.
        no_signal: of the parts, those where the teacher is not above chance.
    """

    group: str
    part: str
    kind: str
    enough: Point | None
    stopped: Point | None
    verdict: Verdict | None
    stopped_verdict: Verdict | None
    probability: Verdict | None
    failed: dict[str, str]
    no_signal: tuple[str, ...]

    def bits(self) -> int | None:
        """The least bits that are enough."""
        return None if self.enough is None else of_kind(self.enough, self.kind)


def of_kind(point: Point, kind: str) -> int:
    """A point's bits of what a line varies."""
    return point.bits[[*KINDS].index(kind)]


def written(point: Point, kind: str) -> str:
    """What a line varies of a point, in a few letters: bits and what else tells its grid."""
    return point.written[[*KINDS].index(kind)]


def sequence(points: Sequence[Point], kind: str) -> dict[int, Point]:
    """The points of a line by their bits, from high to low; empty where none was measured."""
    place = [*KINDS].index(kind)
    mine = [point for point in points if {i for i, bits in enumerate(point.bits) if bits} == {0, place}]
    most = max((point.bits[0] for point in mine), default=0)
    chosen: dict[int, Point] = {}
    for point in sorted(mine if kind == "weights" else [p for p in mine if p.bits[0] == most], key=by_kl):
        chosen.setdefault(point.bits[place], point)
    return dict(sorted(chosen.items(), reverse=True))


def by_kl(point: Point) -> float:
    """For sorting: the least KL first, and an unknown one last; among equals the order stays."""
    return math.inf if math.isnan(point.kl) else point.kl


def lines(judge: Judge, parts: Sequence[Part], kinds: Sequence[str] = tuple(KINDS)) -> list[Line]:
    """A line a part and kind that was measured, and before a group's parts those of the group, where it has several."""
    ended = list[Line]()
    for group in dict.fromkeys(part.group for part in parts):
        mine = [part for part in parts if part.group == group]
        for judged in ([mine] if len(mine) > 1 else []) + [[part] for part in mine]:
            for kind in kinds:
                if along := sequence(judge.laboratory.points, kind):
                    ended.append(_line(judge, judged, kind, along))
    return ended


def _line(judge: Judge, parts: Sequence[Part], kind: str, along: dict[int, Point]) -> Line:
    verdicts = {bits: {part.name: judge.verdict(point, part) for part in parts} for bits, point in along.items()}
    ended = fixed_sequence.least(
        {bits: {name: verdict.verdict for name, verdict in of_parts.items()} for bits, of_parts in verdicts.items()}
    )
    enough = None if ended.bits is None else along[int(ended.bits)]
    stopped = None if ended.stopped_at is None else along[int(ended.stopped_at)]
    one = parts[0] if len(parts) == 1 else None
    return Line(
        group=parts[0].group,
        part=one.name if one else "",
        kind=kind,
        enough=enough,
        stopped=stopped,
        verdict=judge.verdict(enough, one) if enough and one else None,
        stopped_verdict=judge.verdict(stopped, one) if stopped and one else None,
        probability=judge.by_probability(enough, one) if enough and one else None,
        failed={name: verdicts[int(ended.stopped_at or 0)][name].verdict for name in ended.failed},
        no_signal=ended.no_signal,
    )
