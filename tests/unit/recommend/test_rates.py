"""How often a recommendation is wrong, and how often it comes, by simulation: 2,000 draws of answers, each through all
of the way from answers to the line and the scheme."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.recommend import choice, least, scores
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import Laboratory
from pipeline.statistics.sample_size import items_needed
from tests.unit.recommend.made_answers import first, laboratory

DRAWS, LEVEL, MARGIN, ACCURACY, FLIPS = 2000, 0.05, 0.02, 0.66, 0.08
LOSS = MARGIN * ACCURACY
ERROR = 3 * math.sqrt(LEVEL * (1 - LEVEL) / DRAWS)  # three standard errors of a rate of 5 %
PARTS = ("basic/reasoning", "long/lines")


def drawn(known: Laboratory, losses: dict[str, list[float]], random: np.random.Generator) -> Laboratory:
    """Answers of the teacher and of points, each of which loses so much on each part, and FLIPS of them turn."""
    count = len(known.items) // len(PARTS)
    teacher = random.random((len(PARTS), count)) < ACCURACY
    rights = {"teacher": teacher}
    for name, of_parts in losses.items():
        chance = np.array(of_parts)[:, None]
        turns = np.where(teacher, (FLIPS + chance) / 2 / ACCURACY, (FLIPS - chance) / 2 / (1 - ACCURACY))
        rights[name] = teacher ^ (random.random(teacher.shape) < turns)
    unknown = np.full(len(known.items), np.nan)
    values = {
        name: {scores.ACCURACY: right.ravel().astype(float), scores.PROBABILITY: unknown, scores.SKILL: unknown}
        for name, right in rights.items()
    }
    return replace(known, scored=values)


@pytest.fixture(scope="module")
def judges() -> list[Judge]:
    """W8 loses nothing; W4 loses the margin on the second part, W3 on both. The KL is in the order of the bits."""
    losses = {"W8 rtn": [0.0, 0.0], "W4 rtn": [0.0, LOSS], "W3 rtn": [LOSS, LOSS]}
    kl = {name: float(i) for i, name in enumerate(losses)}
    items = dict.fromkeys(PARTS, first(1500, 2500))
    known = laboratory(items, {name.split()[0]: {} for name in losses}, kl)
    random = np.random.default_rng(0)
    return [Judge(drawn(known, losses, random), MARGIN) for _ in range(DRAWS)]


def test_a_true_loss_of_the_margin_is_called_within_in_5_percent_at_most(judges: list[Judge]):
    """Each step of a line where it is the first that loses; and the line's and the scheme's claims as a whole."""
    parts = judges[0].laboratory.parts  # the same of all draws
    ended = [least.lines(judge, parts, ["weights"]) for judge in judges]
    by_part = {
        part: [line.bits() for lines in ended for line in lines if line.part == part] for part in ("reasoning", "lines")
    }
    rates = {
        "four bits of lines": np.mean([bits is not None and bits <= 4 for bits in by_part["lines"]]),
        "three bits of reasoning": np.mean([bits is not None and bits <= 3 for bits in by_part["reasoning"]]),
    }
    assert max(rates.values()) <= LEVEL + ERROR, rates
    assert min(rates.values()) > LEVEL / 4, "not for want of any claim"
    schemes = [choice.choose(judge, parts, "weights") for judge in judges]
    wrong = np.mean([made.shown and made.point is not None and made.point.bits[0] <= 4 for made in schemes])
    assert wrong <= LEVEL + ERROR


def test_without_a_loss_it_is_shown_as_often_as_computed():
    """On as many items as `items_needed` asks for at a power of 80 %; the score test takes a little of it."""
    count = items_needed(FLIPS, LOSS, LEVEL, 0.8)
    known = laboratory({PARTS[0]: first(count, count)}, {"W4": {}})
    parts, random, shown = known.named(["basic"]), np.random.default_rng(1), 0
    for _ in range(DRAWS):
        judge = Judge(_one(known, random), MARGIN)
        (line,) = least.lines(judge, parts)
        shown += line.bits() == 4
    assert 0.8 - 0.05 < shown / DRAWS < 0.8 + 3 * math.sqrt(0.8 * 0.2 / DRAWS)


def _one(known: Laboratory, random: np.random.Generator) -> Laboratory:
    teacher = random.random(len(known.items)) < ACCURACY
    turns = np.where(teacher, FLIPS / 2 / ACCURACY, FLIPS / 2 / (1 - ACCURACY))
    student = teacher ^ (random.random(len(teacher)) < turns)
    unknown = np.full(len(teacher), np.nan)
    return replace(
        known,
        scored={
            name: {scores.ACCURACY: right.astype(float), scores.PROBABILITY: unknown, scores.SKILL: unknown}
            for name, right in (("teacher", teacher), ("W4 rtn", student))
        },
    )
