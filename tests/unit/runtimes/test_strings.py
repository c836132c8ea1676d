"""The texts that tokenizers are held against, and what comes of one that is another."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from pipeline.runtimes import proof, strings, table
from pipeline.runtimes.references import References
from tests import tiny
from tests.unit.runtimes.conftest import Exported


def test_texts_are_the_same_in_each_run_and_of_all_kinds():
    texts = strings.texts(["<s>", "</s>"])
    assert texts == strings.texts(["<s>", "</s>"])
    assert len({*texts}) == strings.COUNT == len(texts)
    together = "".join(texts)
    categories = {unicodedata.category(character) for character in together}
    assert {"Lu", "Ll", "Lo", "Mn", "Nd", "No", "Sm", "So", "Zs", "Cc", "Cf"} <= categories
    for part in ("\r\n", "\u200d", "e\u0301", "def f(", "<s>", "\u3000"):
        assert part in together
    assert all(text.encode() for text in texts), "no lone surrogates"


def test_they_tell_a_tokenizer_with_a_merge_from_one_without():
    texts = strings.texts([])
    ours, other = tiny.tokenizer(), tiny.merging_tokenizer()
    differing = [text for text in texts if ours(text)["input_ids"] != other(text)["input_ids"]]
    assert 0 < len(differing) < len(texts)


def test_conversations_have_turns_and_instructions():
    roles = [[message["role"] for message in messages] for messages in strings.conversations()]
    assert roles == [["user"], ["system", "user"], ["user", "assistant", "user"]]


@pytest.mark.parametrize("format_name", ["onnx", "compressed-tensors"])
def test_a_folder_with_a_tokenizer_of_another_vocabulary_fails_in_a_line_a_runtime(
    format_name: str, exported: Exported, against: References, tmp_path: Path
):
    folder = shutil.copytree(exported(format_name), tmp_path / "export")
    larger = tiny.merging_tokenizer()
    larger.add_tokens(["the", "to"])
    larger.save_pretrained(folder)
    problems = proof.prove(folder, format_name, against).problems
    for name, problem in zip(table.runtimes_of(format_name), problems, strict=True):
        assert problem.startswith(f"{name}: its tokenizer gives other ids than the teacher's for ")
        assert "\n" not in problem
