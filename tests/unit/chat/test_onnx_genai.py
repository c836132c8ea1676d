"""onnxruntime-genai itself, with a model of which it is known what it says."""

from itertools import islice
from pathlib import Path

import pytest

from pipeline.chat.engine import Message, Sampling, TooLong
from pipeline.chat.engines import open_folder
from pipeline.chat.onnx_genai import BATCH
from tests import tiny
from tests.unit.chat.conftest import CONTEXT, REFUSING, TEMPLATE, onnx_folder, said_after

pytest.importorskip("onnxruntime_genai")


def user(*texts: str) -> list[Message]:
    return [Message(role="user", content=text) for text in texts]


def prompt(messages: list[Message]) -> list[int]:
    """As transformers renders and splits it."""
    tokenizer = tiny.merging_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_it_reads_the_rendered_conversation_and_of_the_next_one_what_is_new(onnx: Path):
    engine = open_folder(onnx, threads=1)
    assert engine.templated
    sampling = Sampling(max_tokens=6)
    for messages in (
        user("hello"),
        user("hello", "and on"),
        user("another one"),
        user("another one"),
        user("x" * BATCH),
    ):
        pieces = list(engine.answer(messages, sampling, 1))
        assert "".join(piece.text for piece in pieces) == said_after(prompt(messages), 6)
        assert [piece.note for piece in pieces if piece.note] == [sampling.at_its_end.note]
        assert [len(piece.text) for piece in pieces[:-1]] == [1] * 6  # as they come


def test_an_answer_that_is_stopped_leaves_nothing_behind(onnx: Path):
    engine = open_folder(onnx)
    answer = engine.answer(user("hello"), Sampling(), 1)
    assert len(list(islice(answer, 3))) == 3
    answer.close()
    messages = user("hello", "and on")
    pieces = engine.answer(messages, Sampling(max_tokens=4), 1)
    assert "".join(piece.text for piece in pieces) == said_after(prompt(messages), 4)


@pytest.mark.parametrize("most", [1, 3])
def test_a_conversation_goes_on_after_an_answer_that_was_cut_off(onnx: Path, most: int):
    """The next prompt begins with every token that the generator holds; of these the last was not read yet."""
    engine = open_folder(onnx)
    said = "".join(piece.text for piece in engine.answer(user("hello"), Sampling(max_tokens=most), 1))
    messages = [*user("hello"), Message(role="assistant", content=said), *user("and on")]
    for _ in range(2):
        pieces = engine.answer(messages, Sampling(max_tokens=most), 1)
        said = "".join(piece.text for piece in pieces)
        assert said == said_after(prompt(messages), most)
        messages += [Message(role="assistant", content=said), *user("more")]


def test_what_does_not_fit_is_told_and_a_full_context_ends_the_answer(onnx: Path):
    engine = open_folder(onnx, context=64)
    ids = prompt(user("hello"))
    with pytest.raises(TooLong) as refused:
        next(engine.answer(user("hello"), Sampling(), 64 - len(ids) + 1))
    assert refused.value.args == (len(ids), 64)
    pieces = list(engine.answer(user("hello"), Sampling(), 64 - len(ids)))
    assert "".join(piece.text for piece in pieces) == said_after(ids, 64 - len(ids))
    assert "context of 64 tokens is full" in pieces[-1].note


def test_without_a_template_it_goes_on_with_the_text(onnx_without_template: Path):
    engine = open_folder(onnx_without_template)
    assert not engine.templated
    messages = [*user("once"), Message(role="assistant", content=" upon"), *user("a time")]
    expected = said_after(tiny.merging_tokenizer()("once upon\na time")["input_ids"], 5)
    assert "".join(piece.text for piece in engine.answer(messages, Sampling(max_tokens=5), 1)) == expected


def test_at_a_temperature_it_draws(onnx: Path):
    """The letters differ by 1 in their logit: at a temperature of 100 nearly any token comes."""
    engine = open_folder(onnx)
    hot = {"".join(p.text for p in engine.answer(user("a"), Sampling(100.0, 1.0, 8), 1)) for _ in range(4)}
    assert len(hot) > 1
    cold = "".join(p.text for p in engine.answer(user("a"), Sampling(100.0, 1e-6, 8), 1))
    assert cold == said_after(prompt(user("a")), 8)


def test_a_longer_context_than_the_files_is_refused(onnx: Path):
    with pytest.raises(ValueError, match=f"--context {CONTEXT + 1} is longer than the model's own context, {CONTEXT}"):
        open_folder(onnx, context=CONTEXT + 1)


def test_a_template_that_refuses_is_told_of(tmp_path: Path):
    with pytest.raises(ValueError, match="the model's chat template does not take this: no thanks"):
        next(open_folder(onnx_folder(tmp_path, REFUSING)).answer(user("Thanks"), Sampling(), 1))


def test_what_fails_in_the_runtime_is_told_of_and_the_next_question_is_answered(onnx: Path):
    """A generator that was asked for more tokens than it has room for stands for one that ran out of memory."""
    engine = open_folder(onnx, context=64)
    list(engine.answer(user("hello"), Sampling(max_tokens=2), 1))
    engine.context = 10_000
    with pytest.raises(ValueError, match=r"onnxruntime-genai: .*exceeds max length"):
        list(engine.answer(user("x" * 100), Sampling(max_tokens=2), 1))
    engine.context = 64
    answer = engine.answer(user("hello"), Sampling(max_tokens=3), 1)
    assert "".join(piece.text for piece in answer) == said_after(prompt(user("hello")), 3)
