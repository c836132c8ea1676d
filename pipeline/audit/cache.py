"""Artifacts of any version out of the DVC cache, by the hashes in its dvc.lock, without a checkout."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pyarrow import parquet

from pipeline.artifacts.contract import MANIFEST
from pipeline.evaluation.items import Items

FOLDER = ".dir"  # after the md5 of a folder
COMPARED = {
    "answers": ["task", "item", "hash", "correct", "prediction", "cluster"],
    "documents": ["measure", "document", "hash", "value"],
}


@dataclass(frozen=True)
class Cache:
    """The folder in which DVC keeps files by their md5."""

    folder: Path

    def path(self, md5: str) -> Path:
        """Where the content of a hash lies, if it is there."""
        return self.folder / md5[:2] / md5[2:]

    def listing(self, md5: str) -> dict[str, str] | None:
        """The files of a folder, path in it to md5; None where it is none, or the cache does not have it."""
        if not md5.endswith(FOLDER):
            return None
        try:
            entries = json.loads(self.path(md5).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return {entry["relpath"]: entry["md5"] for entry in entries}

    def file(self, md5: str, name: str) -> Path | None:
        """A file of a folder; None where the cache does not have it."""
        digest = (self.listing(md5) or {}).get(name)
        return self.path(digest) if digest and self.path(digest).is_file() else None

    def items(self, md5: str) -> Items | None:
        """A variant's answers and documents, the columns that are compared; None where the cache has none."""
        files = {name: self.file(md5, f"{name}.parquet") for name in COMPARED}
        tables = [_read(file, COMPARED[name]) for name, file in files.items() if file is not None]
        return Items(*tables) if len(tables) == 2 else None

    def manifest(self, md5: str) -> dict[str, dict[str, str]]:
        """An artifact's manifest: its facts, each file's sha256; empty where the cache does not have it."""
        file = self.file(md5, MANIFEST)
        return json.loads(file.read_text(encoding="utf-8")) if file else {}

    def scores(self, md5: str) -> dict[str, float]:
        """A variant's scores; empty where the cache does not have them."""
        try:
            return json.loads(self.path(md5).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def record(self, md5: str) -> dict[str, object]:
        """What a stage wrote down of what it ran with; empty where the cache has no such record."""
        try:
            content = json.loads(self.path(md5).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) and isinstance(content.get("libraries"), dict) else {}


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    """Those of some columns that a table has: items of before 2026-12 have no clusters."""
    there = set(parquet.read_schema(file).names)
    return pd.read_parquet(file, columns=[column for column in columns if column in there])
