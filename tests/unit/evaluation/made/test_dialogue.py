"""Two turns of a user, of every kind, the second about the answer to the first."""

import pytest

from pipeline.evaluation.made.dialogue import KINDS, MOST_DIALOGUES, make_dialogues


def test_a_seed_makes_the_same_and_fewer_are_the_first_of_more():
    made = make_dialogues(1, 100)
    assert made == make_dialogues(1, 150)[:100]
    assert made != make_dialogues(2, 100)


@pytest.mark.parametrize("seed", range(5))
def test_none_comes_twice_and_there_are_no_more_than_is_said(seed: int):
    made = make_dialogues(seed, MOST_DIALOGUES)
    assert len({*made}) == len(made) == MOST_DIALOGUES
    with pytest.raises(ValueError, match=f"{MOST_DIALOGUES} can be made"):
        make_dialogues(seed, MOST_DIALOGUES + 1)


def test_the_kinds_come_in_turn():
    begin = ("Write ", "", "List ", "Pretend that you are ", "")
    for number, (first, second) in enumerate(make_dialogues(0, 100)):
        assert first.startswith(begin[number % len(KINDS)])
        assert second.endswith(("?", "."))
        assert "{" not in first + second
