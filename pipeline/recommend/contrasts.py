"""What is tested of claims: means of items that a claim sets against each other, with errors over clusters.

A loss is 1 - mean(student) / mean(teacher), which moves with item i by -(s_i - r t_i) / (n mean(teacher)), r the ratio
(the delta method). A difference of two losses moves by the difference of these, item by item, so that items which both
have are paired (`pipeline.statistics.clustered`).
"""

import math

import numpy as np
from scipy import stats

from pipeline.recommend import scores
from pipeline.recommend.laboratory import Laboratory, Part
from pipeline.recommend.point import Point
from pipeline.report.sweep_files import REFERENCE
from pipeline.statistics.clustered import Mean, error, mean


def gain(laboratory: Laboratory, better: Point, worse: Point, rows: np.ndarray) -> Mean:
    """Accuracy of one point less that of another, on some items."""
    one, other = (laboratory.scored[point.name][scores.ACCURACY][rows] for point in (better, worse))
    return mean(one - other, _clusters(laboratory, rows))


def kept_above(laboratory: Laboratory, point: Point, share: float, rows: np.ndarray) -> Mean:
    """What a point has above chance, less a share of what the teacher has."""
    chance = laboratory.chance[rows]
    teacher, student = (laboratory.scored[name][scores.ACCURACY][rows] - chance for name in (REFERENCE, point.name))
    return mean(student - share * teacher, _clusters(laboratory, rows))


def more_lost(laboratory: Laboratory, point: Point, part: Part, other: Part) -> Mean:
    """By how much a point's loss on one part exceeds that on another, each by its own score.

    Raises:
        ValueError: the teacher scores nothing on one of them.
    """
    moves, losses = np.zeros(len(laboratory.items)), list[float]()
    for sign, judged in ((1, part), (-1, other)):
        teacher, student = (laboratory.scored[name][judged.score][judged.rows] for name in (REFERENCE, point.name))
        whole = float(teacher.mean())
        if whole <= 0:
            raise ValueError(f"{judged.label}: the teacher scores nothing, so nothing can be lost")
        ratio = float(student.mean()) / whole
        losses.append(1 - ratio)
        moves[judged.rows] -= sign * (student - ratio * teacher) / (len(judged.rows) * whole)
    asked = np.union1d(part.rows, other.rows)
    clusters = _clusters(laboratory, asked)
    return Mean(losses[0] - losses[1], error(moves[asked], clusters), int(clusters.max()) + 1)


def spearman(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """The rank correlation with its 95 % interval (Bonett and Wright 2000, Psychometrika 65:23), float64 [n], n > 3."""
    rank = float(stats.spearmanr(one, other).statistic)
    inside = min(max(rank, -1 + 1e-12), 1 - 1e-12)
    reach = float(stats.norm.ppf(0.975)) * math.sqrt((1 + inside**2 / 2) / (len(one) - 3))
    return rank, math.tanh(math.atanh(inside) - reach), math.tanh(math.atanh(inside) + reach)


def _clusters(laboratory: Laboratory, rows: np.ndarray) -> np.ndarray:
    return np.unique(laboratory.clusters[rows], return_inverse=True)[1]
