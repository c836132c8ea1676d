"""Text of others: what is read, and how it is packed."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.corpus.texts import documents, pack
from tests import tiny


def test_a_folders_files_are_read_in_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two\nlines", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "zéro"}) + "\n" + json.dumps({"page": "one"}) + "\n")
    (tmp_path / "README.md").write_text("not read")
    assert documents(tmp_path) == ["zéro", "one", "two\nlines"]
    assert documents(tmp_path / "b" / "2.txt") == ["two\nlines"]


def test_what_is_no_text_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no text; put \.txt or \.jsonl files there"):
        documents(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"words": 1}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: expected an object with a 'page' or a 'text'"):
        documents(tmp_path)
    (tmp_path / "bad.jsonl").unlink()
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bad.txt is not UTF-8 text"):
        documents(tmp_path)


@pytest.mark.parametrize("length", [2, 5, 7, 100])
def test_packing_loses_no_token_and_pads_the_last_sequence_alone(length: int):
    texts, tokenizer = ["abc", "", "defgh", "i"], tiny.tokenizer()
    tokens, lengths = pack(texts, tokenizer, length)
    expected = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    kept = torch.cat([row[:valid] for row, valid in zip(tokens, lengths, strict=True)]).tolist()
    assert kept == expected[: len(expected) - (len(expected) % length == 1)]
    assert tokens.shape[1] == length
    assert (lengths[:-1] == length).all()
    assert (tokens[-1, lengths[-1] :] == 0).all()


def test_without_an_end_token_documents_follow_each_other():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    tokens, lengths = pack(["ab", "cd"], tokenizer, 4)
    assert tokenizer.decode(tokens[0]) == "abcd"
    assert lengths.tolist() == [4]
