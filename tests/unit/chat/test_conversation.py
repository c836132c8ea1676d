"""What of a conversation a model is shown."""

import pytest

from pipeline.chat.conversation import Conversation
from pipeline.chat.engine import Sampling
from tests.unit.chat.spoken import Echo


def said(conversation: Conversation, text: str) -> str:
    return "".join(piece.text for piece in conversation.ask(text))


def notes(conversation: Conversation, text: str) -> list[str]:
    return [piece.note for piece in conversation.ask(text) if piece.note]


def test_all_that_was_said_is_shown_until_it_is_reset():
    conversation = Conversation(Echo(), Sampling(), "be kind")
    assert said(conversation, "one") == "system: be kind user: one "
    assert said(conversation, "two") == "system: be kind user: one assistant: system: be kind user: one user: two "
    conversation.reset()
    assert said(conversation, "three") == "system: be kind user: three "


def test_the_oldest_turns_make_room_for_a_quarter_of_the_context():
    engine = Echo(context=36)
    conversation = Conversation(engine, Sampling(max_tokens=6), "kind")
    for text in ("one", "two", "three"):
        assert notes(conversation, text) in ([], ["the answer ends here: it has 6 tokens; --max-tokens allows more"])
    conversation.sampling = Sampling(max_tokens=100)
    assert notes(conversation, "four") == ["the context of 36 tokens is full: the oldest turn is forgotten"]
    assert [turn["content"] for turn in conversation.turns[::2]] == ["two", "three", "four"]
    assert engine.rooms == [1, 6, 6, 9, 9]
    shown = conversation.turns[-1]["content"]
    assert shown.startswith("system: kind user: two ")
    assert shown.endswith("user: four ")


def test_several_turns_are_forgotten_in_one_line():
    conversation = Conversation(Echo(context=30), Sampling(max_tokens=4))
    for text in ("one", "two", "three"):
        said(conversation, text)
    assert notes(conversation, "word " * 24)[0] == "the context of 30 tokens is full: the oldest 3 turns are forgotten"


def test_a_question_that_is_too_long_alone_is_refused_and_forgotten():
    conversation = Conversation(Echo(context=10), Sampling(max_tokens=4))
    with pytest.raises(ValueError, match="it has 21 tokens, and the context holds 10 with the answer"):
        said(conversation, "word " * 20)
    assert conversation.turns == []
    assert said(conversation, "one") == "user: one "


def test_a_question_alone_may_leave_one_token_for_its_answer():
    conversation = Conversation(Echo(context=10), Sampling(max_tokens=4))
    assert said(conversation, "word " * 8) == "user: word word word "


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came():
    conversation = Conversation(Echo(), Sampling())
    pieces = conversation.ask("one two")
    next(pieces)
    pieces.close()
    assert [turn["content"] for turn in conversation.turns] == ["one two", "user: "]
    conversation.engine = Echo(end=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        said(conversation, "three")
    assert conversation.turns[-1]["content"].endswith("user: three ")
