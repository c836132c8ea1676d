"""The verdicts on points: is what a point loses on a sub-task shown to be within the margin."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.recommend import scores
from pipeline.recommend.laboratory import Laboratory, Part
from pipeline.recommend.point import Point
from pipeline.report.sweep_files import REFERENCE
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, NOT_SHOWN, WITHIN, Verdict, relative


class Judge:
    """Verdicts on a laboratory's points at one margin, each worked out once.

    Args:
        margin: share of the teacher's score, between 0 and 1.
    """

    def __init__(self, laboratory: Laboratory, margin: float) -> None:
        self.laboratory, self.margin = laboratory, margin
        self._known: dict[tuple[str, str, str, str], Verdict] = {}

    def verdict(self, point: Point, part: Part, score: str = "") -> Verdict:
        """By the part's own score, or by another.

        Raises:
            ValueError: the part has fewer than two items, or the score is not known of all.
        """
        score = score or part.score
        key = point.name, part.group, part.name, score
        if key not in self._known:
            teacher, student = (self.laboratory.scored[name][score][part.rows] for name in (REFERENCE, point.name))
            chance = 0.0 if score == scores.SKILL else self.laboratory.chance[part.rows]
            clusters = self.laboratory.clusters[part.rows]
            try:
                self._known[key] = relative(teacher, student, self.margin, chance, clusters)
            except ValueError as error:
                raise ValueError(f"{part.label}, {point.label}: {error}") from None
        return self._known[key]

    def between(self, reference: Point, point: Point, part: Part) -> Verdict:
        """What a point loses against another one instead of the teacher, by the part's own score."""
        chance, clusters = self.laboratory.chance[part.rows], self.laboratory.clusters[part.rows]
        first, second = (self.laboratory.scored[one.name][part.score][part.rows] for one in (reference, point))
        return relative(first, second, self.margin, chance, clusters)

    def by_probability(self, point: Point, part: Part) -> Verdict | None:
        """On the probability of the right choice, where it is known of all items and its loss has the smaller error."""
        if part.score != scores.ACCURACY:
            return None
        of_points = [self.laboratory.scored[name][scores.PROBABILITY][part.rows] for name in (REFERENCE, point.name)]
        if not all(np.isfinite(values).all() for values in of_points):
            return None
        verdict = self.verdict(point, part, scores.PROBABILITY)
        return verdict if verdict.loss_error < self.verdict(point, part).loss_error else None


@dataclass(frozen=True)
class Together:
    """What several parts show of one point.

    Attributes:
        verdict: within, if all are that have a signal; beyond, if one is; else not shown. no signal: none has one.
        failed: labels of those that are not within. no_signal: of those that say nothing.
        worst: the largest of the p-values that a loss is the margin or more.
        more: items that the neediest part lacks; None: nothing is lacking, or more items would not help.
    """

    verdict: str
    failed: tuple[str, ...]
    no_signal: tuple[str, ...]
    worst: float
    more: int | None


def together(judge: Judge, point: Point, parts: Sequence[Part]) -> Together:
    """All parts at once: that each is within needs no correction, as the claim is wrong only if one of them is."""
    verdicts = {part.label: judge.verdict(point, part) for part in parts}
    silent = tuple(label for label, verdict in verdicts.items() if verdict.verdict == NO_SIGNAL)
    judged = {label: verdict for label, verdict in verdicts.items() if label not in silent}
    failed = tuple(label for label, verdict in judged.items() if verdict.verdict != WITHIN)
    kinds = {verdict.verdict for verdict in judged.values()}
    verdict = BEYOND if BEYOND in kinds else NOT_SHOWN if failed else WITHIN if judged else NO_SIGNAL
    needs = [verdict.more for verdict in judged.values() if verdict.more]
    worst = max((verdict.p_within for verdict in judged.values()), default=1.0)
    return Together(verdict, failed, silent, worst, max(needs) if needs and verdict == NOT_SHOWN else None)
