"""A pair of rows has the same two continuations, and each is right once."""

from pipeline.evaluation.made.ethics import ACTIONS, DEEDS
from pipeline.evaluation.made.table import make


def test_a_pair_differs_in_the_judgement_alone_and_so_does_its_answer():
    rows = make("ethics", 0, 400)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["cluster"] == other["cluster"]
        assert {*one["choices"]} == {*other["choices"]}
        assert one["choices"][one["answer"]] != other["choices"][other["answer"]]
        first, second = one["context"].split(), other["context"].split()
        assert [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]] in (
            [("wrong", "fine")],
            [("fine", "wrong")],
        )


def test_what_is_wrong_continues_wrong():
    wrong = {f"{detail}." for _, detail, _ in (*ACTIONS, *DEEDS)}
    fine = {f"{detail}." for _, _, detail in (*ACTIONS, *DEEDS)}
    assert not wrong & fine
    for row in make("ethics", 0, 400):
        assert row["choices"][row["answer"]] in (wrong if " wrong to " in row["context"] else fine)
