"""What code says of answers that keep to an instruction, and of ones that do not."""

import pytest

from pipeline.evaluation.made.instructions import CHECKS, KINDS, MOST_INSTRUCTIONS, Instruction, make_instructions

ANSWERS = [
    ("last word", "home", "We all went home.", "Home is far away."),
    ("last word", "home", 'It ends: "Home".', "We went homeward"),
    ("capitals", "", "THE SEA IS BLUE, 24 HOURS A DAY.", "THE SEA is BLUE."),
    ("capitals", "", "A", "1234."),
    ("lower case", "", "the sea is blue.", "The sea is blue."),
    ("bullets", "3", "- one\n- two\n\n- three", "- one\n- two"),
    ("bullets", "2", "* one\n* two", "Here they are:\n- one\n- two"),
    ("bullets", "2", "- one\n- two\n", "-one\n-two"),
    ("without a letter", "b", "The sea is calm.", "The Baltic is calm."),
    ("at most words", "10", "one two three four five six seven eight nine ten", "a b c d e f g h i j k"),
    ("at most words", "10", "It's a well-known old song, isn't it?", "one two three, four five six; seven 8 9 10 11"),
    ("JSON keys", "mood title", '{"title": "Sea", "mood": "calm"}', '{"title": "Sea"}'),
    ("JSON keys", "mood title", '```json\n{"title": "Sea", "mood": "calm"}\n```', '{"title": 1, "mood": 2, "sea": 3}'),
    ("JSON keys", "mood title", '{"mood": null, "title": []}', 'Sure: {"title": "Sea", "mood": "calm"}'),
    ("JSON keys", "mood title", '{"mood": {"title": 1}, "title": 2}', '["title", "mood"]'),
    ("repeated", "Write something.", "Write something. The sea is wide and deep.", "It is wide. Write something."),
    ("repeated", "Write something.", '"Write something."\nThe sea is wide and blue.', "Write something."),
    ("without commas", "", "The sea is wide.", "The sea is wide, and blue."),
    ("closing mark", "###", "The sea is wide.\n###", "### The sea is wide."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "asked", "good", "bad"), ANSWERS)
def test_code_tells_good_answers_from_bad_ones(kind: str, asked: str, good: str, bad: str):
    instruction = Instruction("", kind, asked)
    assert instruction.followed(good)
    assert instruction.followed(f"  {good}\n")
    assert not instruction.followed(bad)


@pytest.mark.parametrize("answer", ["", "   \n"])
def test_no_answer_follows_nothing(answer: str):
    assert not any(instruction.followed(answer) for instruction in make_instructions(0, 100))


def test_each_kind_has_a_check_and_both_are_tested():
    assert [*KINDS] == [*CHECKS]
    assert {kind for kind, *_ in ANSWERS} == {*KINDS}


def test_a_seed_makes_the_same_and_fewer_are_the_first_of_more():
    made = make_instructions(1, 200)
    assert made == make_instructions(1, 300)[:200]
    assert made != make_instructions(2, 200)
    assert [instruction.kind for instruction in made[:10]] == [*KINDS]


def test_a_prompt_names_what_is_asked():
    for instruction in make_instructions(0, 300):
        assert all(word in instruction.prompt for word in instruction.asked.split())
        assert "  " not in instruction.prompt


@pytest.mark.parametrize("seed", range(5))
def test_none_comes_twice_and_there_are_no_more_than_is_said(seed: int):
    made = make_instructions(seed, MOST_INSTRUCTIONS)
    assert len({instruction.prompt for instruction in made}) == len(made) == MOST_INSTRUCTIONS
    with pytest.raises(ValueError, match=f"{MOST_INSTRUCTIONS} can be made"):
        make_instructions(seed, MOST_INSTRUCTIONS + 1)
