from pathlib import Path

import pytest

from pipeline.evaluation import items

ANSWERS = [
    {"task": "piqa", "item": 1, "hash": "b", "prediction": 0, "correct": False, "log_likelihoods": [-1.5, -2.0]},
    {"task": "piqa", "item": 0, "hash": "a", "prediction": 1, "correct": True, "log_likelihoods": [-3.25, -0.1]},
]
TOKENS = [
    {"text": "dialogue", "document": 0, "position": 5, "turn": 2, "kl": 0.5, "same": False},
    {"text": "held_out", "document": 1, "position": 1, "turn": 0, "kl": 0.0, "same": True},
]
WRITTEN = [{"item": 0, "hash": "d", "text": "Yes.", "tokens": 2, "repetition": 0.25, "ended": True}]
DOCUMENTS = [{"measure": "kl", "document": 0, "hash": "c", "tokens": 7, "value": 0.125}]


def sample() -> items.Items:
    return items.Items(items.answers(ANSWERS), items.documents(DOCUMENTS), items.tokens(TOKENS), items.written(WRITTEN))


def test_what_was_saved_reads_back_in_order_and_the_same_rows_give_the_same_bytes(tmp_path: Path):
    sample().save(tmp_path / "one")
    sample().save(tmp_path / "two")
    names = ("answers.parquet", "documents.parquet", "tokens.parquet", "written.parquet", "manifest.json")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    loaded = items.Items.load(tmp_path / "one")
    assert [*loaded.answers["item"]] == [0, 1]
    assert [*loaded.answers["correct"]] == [True, False]
    assert [list(likelihoods) for likelihoods in loaded.answers["log_likelihoods"]] == [[-3.25, -0.1], [-1.5, -2.0]]
    assert loaded.documents.to_dict("records") == DOCUMENTS
    assert loaded.tokens.to_dict("records") == TOKENS
    assert loaded.written.to_dict("records") == WRITTEN
    assert loaded.tokens["kl"].dtype == "float32"


def test_no_task_is_no_error(tmp_path: Path):
    items.Items(items.answers([]), items.documents(DOCUMENTS)).save(tmp_path / "items")
    assert list(items.Items.load(tmp_path / "items").answers.columns) == list(items.ANSWERS)


def test_what_was_edited_is_refused(tmp_path: Path):
    sample().save(tmp_path / "items")
    items.documents([{**DOCUMENTS[0], "value": 0.0}]).to_parquet(tmp_path / "items" / "documents.parquet")
    with pytest.raises(ValueError, match=r"documents\.parquet: its content has changed"):
        items.Items.load(tmp_path / "items")
