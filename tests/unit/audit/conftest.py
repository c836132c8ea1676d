"""A project of two stages as an audit sees it: files in memory, and a dvc.lock that fits them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.artifacts.inputs import flat
from pipeline.audit import locks, versions
from pipeline.audit.cache import Cache
from pipeline.audit.versions import Version

RAN = {"processor": "A", "threads": 2, "devices": ["cpu"], "torch_build": "cpu", "libraries": {"torch": "2.0"}}
FILES = {
    "data/ran.json": json.dumps(RAN).encode(),
    "versions.yaml": b'torch: "2.0"',
    "make.py": b"make",
    "score.py": b"score",
    "data/text/a": b"a",
    "data/text/b": b"b",
}


class Memory:
    """A tree whose files are in a dict."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.contents = files

    def read(self, path: str) -> bytes | None:
        return self.contents.get(path)

    def files(self, folder: str) -> list[str]:
        return sorted(path for path in self.contents if path.startswith(f"{folder}/"))

    def remedy(self, path: str) -> str:
        return f"`git restore {path}`"


def digest(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def lock_of(files: dict[str, bytes]) -> dict[str, Any]:
    """dvc.lock: `make` makes data/corpus of make.py, with torch, and says what it ran with; `evaluate@student` and
    `report` score it."""

    def entry(path: str, md5: str | None = None) -> dict[str, str]:
        return {"path": path, "hash": "md5", "md5": md5 or digest(files[path])}

    corpus, items = entry("data/corpus", "c" * 32 + ".dir"), entry("data/items/student", "d" * 32 + ".dir")
    scores, summary = entry("data/scores/student.json", "5" * 32), entry("data/report/summary.json", "6" * 32)
    stages = {
        "report": {"cmd": "report", "deps": [scores], "outs": [summary]},
        "evaluate@student": {
            "cmd": "score",
            "deps": [corpus, entry("score.py")],
            "params": {"params.yaml": {"evaluate": {"limit": 3}}},
            "outs": [scores, items],
        },
        "make": {
            "cmd": "make --environment data/ran.json",
            "deps": [entry("make.py")],
            "params": {
                "params.yaml": {"seed": 0, "make": {"length": 8, "stop": ""}},
                "versions.yaml": {"torch": "2.0"},
            },
            "outs": [corpus, entry("data/ran.json")],
        },
    }
    return json.loads(json.dumps({"schema": "2.0", "stages": stages}))  # no entry shared with another


@pytest.fixture
def files() -> dict[str, bytes]:
    """The project's files."""
    knobs = {"seed": 0, "make": {"length": 8, "stop": ""}, "evaluate": {"limit": 3}}
    contents = {**FILES, "params.yaml": yaml.safe_dump(knobs).encode()}
    return {**contents, "dvc.lock": yaml.safe_dump(lock_of(contents)).encode()}


@pytest.fixture
def version(tmp_path: Path) -> Callable[..., Version]:
    """A version of some files, under a name; its stage's record lies in a cache."""
    cache = Cache(tmp_path / "cache")

    def make(name: str, files: dict[str, bytes], metrics: dict[str, float] | None = None, pins: str = "2.0") -> Version:
        tree = Memory(files)
        lock = locks.load(tree)
        knobs = flat(yaml.safe_load(files["params.yaml"]))
        record = cache.path(digest(files["data/ran.json"]))
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(files["data/ran.json"])
        ran = versions.environments(lock, cache)
        stale = lock.stale(tree)
        outdated = "report" in stale
        return Version(name, "", "", lock, knobs, metrics or {}, {"torch": pins}, stale, ran, outdated)

    return make
