"""Corrections for many tests, by hand and by what they promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics import corrections


def test_holms_correction_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 (raised to what stands before it), 0.5 x 1."""
    assert corrections.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert corrections.holm([0.9, 0.8]) == [1.0, 1.0]
    assert corrections.holm([]) == []


@pytest.mark.usefixtures("garbage_set_aside")
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_a_correction_lies_between_the_p_value_and_bonferronis(p: list[float]):
    for before, after in zip(p, corrections.holm(p), strict=True):
        assert before <= after <= min(1.0, before * len(p)) or after == pytest.approx(before)
