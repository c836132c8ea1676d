"""What scores say they were read from."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.evaluation import provenance

COMMIT = "142f6d7367fd9877f0fb3c5ea51d5c1a7b3a1c3e"


def split(fingerprint: str, *files: str) -> Any:
    return SimpleNamespace(
        info=SimpleNamespace(download_checksums=dict.fromkeys(files) or None), _fingerprint=fingerprint
    )


def test_tokens_are_known_by_content_shape_and_dtype():
    tokens = np.arange(6)
    same = provenance.of_tokens(tokens.copy())
    assert provenance.of_tokens(tokens) == same
    others = [tokens + 1, tokens.reshape(2, 3), tokens.astype("int32")]
    assert len({same, *(provenance.of_tokens(other) for other in others), provenance.of_tokens(tokens, tokens)}) == 5


def test_a_file_is_known_by_its_sha256_and_a_data_set_of_the_hub_by_its_revision(tmp_path: Path):
    (tmp_path / "piqa.jsonl").write_text("{}\n")
    assert provenance.of_benchmark(tmp_path / "piqa.jsonl", {}) == hashlib.sha256(b"{}\n").hexdigest()
    files = [f"hf://datasets/baber/piqa@{COMMIT}/data/{name}.parquet" for name in ("train", "validation")]
    splits = {"train": split("a", files[0]), "validation": split("b", files[1])}
    assert provenance.of_benchmark(None, splits) == f"baber/piqa@{COMMIT}"
    assert provenance.of_benchmark(None, {"validation": split("b", "data.zip")}) == "validation: b"


def test_items_are_known_by_what_was_asked():
    sample = {"doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "resps": 1}
    same = provenance.of_items([sample, sample])
    assert provenance.of_items([{**sample, "resps": 2}, sample]) == same
    assert provenance.of_items([{**sample, "prompt_hash": "q"}, sample]) != same
    assert provenance.of_items([sample]) != same


def test_a_mix_is_named_by_what_differs():
    read = {"a": {"text": "1", "piqa": "2"}, "b": {"text": "1", "piqa": "3"}, "c": None, "d": {"text": "1"}}
    assert provenance.mixed(read, ["a", "a"]) == []
    assert provenance.mixed(read, ["a", "b"]) == ["piqa is 2 for a, 3 for b"]
    assert provenance.mixed(read, ["a", "d"]) == ["piqa is 2 for a, nothing for d"]
    assert provenance.mixed(read, ["a", "c"]) == ["the scores of c do not say what they were read from"]
    assert provenance.mixed(read, ["c", "c"]) == [], "of before there was such a thing: their windows tell"
