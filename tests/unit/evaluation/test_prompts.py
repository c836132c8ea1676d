from pipeline.evaluation import prompts, turns
from pipeline.evaluation.made.dialogue import make_dialogues
from tests import tiny

TOKENIZER = tiny.tokenizer()  # a token a byte


def test_dialogues_are_framed_turn_by_turn_and_their_length_is_known():
    frame, talk = turns.of(TOKENIZER), prompts.dialogues(3, 5, TOKENIZER)
    for (before, between), (one, two) in zip(talk.said, make_dialogues(3, 5), strict=True):
        assert TOKENIZER.decode(before) == f"User: {one}\nAssistant:"
        assert TOKENIZER.decode(between) == f"\n\nUser: {two}\nAssistant:"
    assert talk.longest(7) == max(len(before) + len(between) + 14 for before, between in talk.said)
    assert talk.template == frame.template


def test_instructions_come_with_what_judges_their_answers():
    asked = prompts.instructions(3, 5, TOKENIZER)
    for (before,), instruction in zip(asked.said, asked.instructions, strict=True):
        assert instruction.prompt in TOKENIZER.decode(before)
        assert not instruction.followed("")


def test_of_none_there_is_nothing_and_no_template_is_asked_for():
    broken = tiny.tokenizer()
    broken.chat_template = "{{ raise_exception('no') }}"
    for none in (prompts.dialogues(0, 0, broken), prompts.instructions(0, 0, broken)):
        assert (none.said, none.longest(9), none.instructions) == ([], 0, [])


def test_what_a_model_cannot_read_is_named_by_its_knob():
    lengths = {"a.long": 5, "b.long": 9, "c.long": 8}
    assert prompts.too_long(8, lengths) == ["b.long: 9 tokens are more than the 8 of the model's context; lower it"]
    assert prompts.too_long(None, lengths) == []
