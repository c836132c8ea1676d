"""llama.cpp itself, with the tiny model."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from torch import Tensor

from pipeline.chat.engine import Message, Sampling, TooLong
from pipeline.chat.engines import open_folder
from pipeline.chat.llama_cpp import metadata
from tests import tiny
from tests.unit.chat.conftest import CONTEXT, REFUSING, TEMPLATE, gguf_folder

ROOT = Path(__file__).parents[3]
CONVERSATION = [
    Message(role="system", content="Be brief, tiny  one."),
    Message(role="user", content="Say to me\n what the time is."),
    Message(role="assistant", content="Tea time."),
    Message(role="user", content="Thanks"),
]


def test_it_reads_as_many_tokens_as_transformers_renders(gguf: Path):
    tokenizer = tiny.merging_tokenizer()
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True)["input_ids"]
    with pytest.raises(TooLong) as refused:
        next(open_folder(gguf, threads=1).answer(CONVERSATION, Sampling(), CONTEXT))
    assert refused.value.args == (len(ids), CONTEXT)


def test_the_same_question_has_the_same_answer_after_another_and_it_ends_where_it_may(gguf: Path):
    engine, sampling = open_folder(gguf, threads=1), Sampling(max_tokens=12)
    answers = []
    for asked in (CONVERSATION[1:2], CONVERSATION, CONVERSATION[1:2]):
        pieces = list(engine.answer(asked, sampling, 1))
        answers.append("".join(piece.text for piece in pieces))
        assert [piece.note for piece in pieces if piece.note] in ([], [sampling.at_its_end.note])
    assert answers[0] == answers[2] != answers[1]


def test_a_full_context_ends_the_answer_and_a_longer_prompt_has_none(gguf: Path):
    engine = open_folder(gguf, threads=1, context=256)
    everything = Sampling(max_tokens=1000)
    notes = [piece.note for piece in engine.answer(CONVERSATION[1:2], everything, 1) if piece.note]
    assert notes in ([], ["the answer ends here: the context of 256 tokens is full"])
    with pytest.raises(TooLong) as refused:
        next(engine.answer([Message(role="user", content="t" * 600)], everything, 1))
    assert refused.value.tokens > 600


def test_an_answer_that_is_closed_ends_at_once(gguf: Path):
    engine = open_folder(gguf, threads=1)
    answer = engine.answer(CONVERSATION, Sampling(max_tokens=400), 1)
    list(islice(answer, 1))
    answer.close()
    assert list(engine.answer(CONVERSATION, Sampling(max_tokens=3), 1))


def test_without_a_template_it_goes_on_with_the_text(gguf_without_template: Path):
    engine = open_folder(gguf_without_template, threads=1)
    assert not engine.templated
    with pytest.raises(TooLong) as refused:
        next(engine.answer(CONVERSATION[1:], Sampling(), CONTEXT))
    text = "Say to me\n what the time is.Tea time.\nThanks"
    assert refused.value.tokens == len(tiny.merging_tokenizer()(text)["input_ids"])
    assert list(engine.answer(CONVERSATION[1:], Sampling(max_tokens=3), 1))


def test_what_the_file_says_is_what_gguf_reads(gguf: Path, gguf_without_template: Path):
    from gguf import GGUFReader

    for folder, templated in ((gguf, True), (gguf_without_template, False)):
        reader = GGUFReader(folder / "model.gguf")
        assert (reader.get_field("tokenizer.chat_template") is not None) == templated
        assert metadata(folder / "model.gguf") == (reader.get_field("llama.context_length").contents(), templated)


def test_its_log_is_silent(gguf: Path, capfd: pytest.CaptureFixture):
    list(open_folder(gguf, threads=1).answer(CONVERSATION, Sampling(max_tokens=3), 1))
    assert capfd.readouterr() == ("", "")


def test_a_longer_context_than_the_files_and_a_file_that_is_none_are_refused(gguf: Path, tmp_path: Path):
    from pipeline.artifacts import contract

    with pytest.raises(ValueError, match=f"--context {CONTEXT + 1} is longer than the model's own context, {CONTEXT}"):
        open_folder(gguf, context=CONTEXT + 1)
    whole = (gguf / "model.gguf").read_bytes()
    with contract.writing(tmp_path / "cut", contract.INT4) as draft:
        (draft.path / "model.gguf").write_bytes(whole[: len(whole) // 2])
        draft.facts = {"format": "gguf"}
    with pytest.raises(ValueError, match=r"llama\.cpp does not open .*cut/model\.gguf"):
        open_folder(tmp_path / "cut")


def test_a_template_that_refuses_is_told_of(tmp_path: Path, tokens: Tensor, valid: Tensor):
    engine = open_folder(gguf_folder(tmp_path, REFUSING, tokens, valid), threads=1)
    with pytest.raises(ValueError, match=r"llama\.cpp: .*no thanks"):
        list(engine.answer(CONVERSATION, Sampling(max_tokens=3), 1))


def test_what_is_closed_as_soon_as_it_is_open_ends(gguf: Path):
    """Again and again: a server that is closed before it has begun hangs in every second case."""
    script = (
        "from pathlib import Path; from pipeline.chat.engines import open_folder\n"
        f"for _ in range(8): open_folder(Path({str(gguf)!r}), threads=1)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
