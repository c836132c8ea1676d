"""An attacked review says what the clean one does, in other letters or beside another sentence."""

import pytest

from pipeline.evaluation.made.attacks import BLAME, DISTRACTIONS, PRAISE
from pipeline.evaluation.made.table import make

ROWS = make("attacked", 0, 240)
PAIRS = [*zip(ROWS[::2], ROWS[1::2], strict=True)]


def review(context: str) -> str:
    return context.removeprefix("Review: ").partition("\n")[0]


def test_both_statements_of_a_review_have_its_sentiment():
    for clean, _ in PAIRS:
        label = clean["choices"][clean["answer"]]
        told = [first for words in (PRAISE, BLAME)[label == "negative"].values() for first in words]
        lowered = review(clean["context"]).lower().removesuffix(".")
        assert sum(statement in lowered for statement in told) == 2
        assert any(lowered == f"{one} and {other}" for one in told for other in told)


@pytest.mark.parametrize("attack", range(3))
def test_an_attack_changes_the_text_and_leaves_what_it_says(attack: int):
    for clean, attacked in PAIRS[attack::3]:
        before, after = review(clean["context"]), review(attacked["context"])
        if attack == 0:  # swapped letters
            assert before != after
            words = [*zip(before.split(), after.split(), strict=True)]
            assert all(sorted(one) == sorted(other) for one, other in words)
            assert all(one[0] == other[0] for one, other in words)
        elif attack == 1:  # typos
            words = [*zip(before.split(), after.split(), strict=True)]
            assert all(abs(len(one) - len(other)) <= 1 and one[0] == other[0] for one, other in words)
            assert sum(len(one) != len(other) for one, other in words) >= 2
        else:
            extra, _, rest = after.partition(". ")
            assert rest == before
            assert f"{extra}." in DISTRACTIONS[clean["choices"][clean["answer"]]]


def test_each_sentiment_comes_equally_often():
    assert sum(clean["choices"][clean["answer"]] == "positive" for clean, _ in PAIRS) == len(PAIRS) / 2
