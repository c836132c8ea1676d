"""Bits from high to low, and where they end."""

import numpy as np
import pytest

from pipeline.statistics.fixed_sequence import Least, least
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, NOT_SHOWN, WITHIN, relative


def of(**by_task: list[str]) -> dict[float, dict[str, str]]:
    """Verdicts at 8, 4, 3 and 2 bits."""
    return {bits: {task: verdicts[i] for task, verdicts in by_task.items()} for i, bits in enumerate((8, 4, 3, 2))}


def test_the_first_that_fails_ends_it():
    """Also where fewer bits pass again, and in whatever order they come."""
    verdicts = of(qa=[WITHIN, WITHIN, NOT_SHOWN, WITHIN])
    assert least(verdicts) == Least(4, 3, ("qa",), ())
    assert least(dict(sorted(verdicts.items()))) == Least(4, 3, ("qa",), ())
    assert least(of(qa=[WITHIN] * 4)) == Least(2, None, (), ())
    assert least(of(qa=[BEYOND, WITHIN, WITHIN, WITHIN])) == Least(None, 8, ("qa",), ())
    assert least({}) == Least(None, None, (), ())


def test_every_sub_task_must_be_within():
    verdicts = of(qa=[WITHIN] * 4, maths=[WITHIN, NOT_SHOWN, BEYOND, BEYOND], code=[WITHIN, BEYOND, BEYOND, BEYOND])
    assert least(verdicts) == Least(8, 4, ("code", "maths"), ())


def test_of_sub_tasks_without_a_signal_nothing_is_claimed():
    verdicts = of(qa=[WITHIN, WITHIN, BEYOND, BEYOND], maths=[NO_SIGNAL] * 4)
    assert least(verdicts) == Least(4, 3, ("qa",), ("maths",))
    assert least(of(maths=[NO_SIGNAL] * 4)) == Least(None, 8, (), ("maths",))


def test_verdicts_that_do_not_belong_together_are_all_named():
    missing = {8.0: {"qa": WITHIN}, 4.5: {"maths": WITHIN}}
    with pytest.raises(ValueError, match=r"8 bits: no verdict of maths; .*4.5 bits: no verdict of qa"):
        least(missing)
    mixed = of(qa=[WITHIN, NO_SIGNAL, WITHIN, WITHIN], maths=[NO_SIGNAL, WITHIN, WITHIN, WITHIN])
    with pytest.raises(ValueError, match=r"maths: no signal at some bits.*qa: no signal at some bits"):
        least(mixed)


def test_too_few_bits_are_chosen_as_often_as_the_level_says():
    """8 and 4 bits lose nothing, 3 and 2 exactly the margin; students on the same items. 5 %, and three errors."""
    random, wrong, draws = np.random.default_rng(5), 0, 800
    for _ in range(draws):
        teacher = random.random(400)
        lost = {8: 0.0, 4: 0.0, 3: 0.02, 2: 0.02}
        students = {bits: (1 - loss) * teacher + random.normal(0, 0.02, 400) for bits, loss in lost.items()}
        chosen = least({bits: {"qa": relative(teacher, student).verdict} for bits, student in students.items()})
        assert chosen.bits is not None
        wrong += chosen.bits < 4
    assert wrong / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert wrong > 0
