"""The files of a sweep's results: what was measured, by which commit, and the table that is worked out from it.

points.csv has a row a point: experiment, its commit (whose dvc.lock names all that it read and made), code (a digest of
the files that its stages ran, which lineage.json lists), teacher (which model), read (a digest of what its scores were
read from), setting, knobs, seed, and metrics. lineage.json has what the table needs besides: the names of knobs, seed
and metrics, the baseline, and where scores, curves and answers lie in a commit; and the sha256 of answers.parquet,
where the sweep keeps one. `unknown`: older code did not note it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artifacts import dvc_hashes
from pipeline.report import comparison

UNKNOWN = "unknown"
ORIGIN = ("commit", "code", "teacher", "read")  # columns of points.csv
LINEAGE = "lineage.json"
TOKENS = "tokens.parquet"  # of a variant, see pipeline/evaluation/items.py
ANSWERS = "answers.parquet"  # of a sweep that keeps answers, see pipeline/flow/point_answers.py
REFERENCE = "teacher"  # the point of what all are compared with
OF_POINT = ("point", "scheme", "method", "rotation", "bits_w", "bits_a", "bits_kv")  # before an answer's own columns
SOURCES = ("pipeline/", "stages/")  # where code lies
DIGITS = 16  # of a digest
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Origin:
    """Where a point's result comes from.

    Attributes:
        commit: of the experiment. code: the md5 of each source file of the stages that it needs, by path; empty where
            it is not known. teacher: as `teacher_of` names it. read: as `digest` makes it of the scores' `read`.
    """

    commit: str = UNKNOWN
    code: Mapping[str, str] = field(default_factory=dict)
    teacher: str = UNKNOWN
    read: str = UNKNOWN

    def row(self) -> dict[str, str]:
        """Its columns of points.csv."""
        code = digest(self.code) if self.code else UNKNOWN
        return dict(zip(ORIGIN, (self.commit, code, self.teacher, self.read), strict=True))


@dataclass(frozen=True)
class SweepFiles:
    """A sweep's results as they lie in a folder: points and curves, and lineage.json as it is."""

    folder: Path
    points: pd.DataFrame
    curves: pd.DataFrame
    lineage: dict[str, Any]

    @cached_property
    def table(self) -> pd.DataFrame:
        """As `comparison.compare` makes it of the points."""
        names = ("knobs", "seed", "metrics", "baseline")
        return comparison.compare(self.points, *(self.lineage[name] for name in names))

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The points that have all metrics."""
        return self.points.dropna(subset=self.lineage["metrics"])

    def code(self, point: Mapping[str, Any]) -> dict[str, str]:
        """The md5 of each source file that a point ran, by path; empty where it is not known."""
        return self.lineage["code"].get(point["code"], {})

    def markdown(self) -> str:
        """What table.md holds."""
        return comparison.markdown(self.folder.name, self.table, len(self.finished), len(self.points))


def load(folder: Path) -> SweepFiles:
    """Read a sweep's results.

    Raises:
        OSError, ValueError, KeyError: they are not there, or none.
    """
    lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
    for name, kind in {"knobs": list, "seed": str, "metrics": list, "baseline": dict, "code": dict}.items():
        if not isinstance(lineage, dict) or not isinstance(lineage.get(name), kind):
            raise ValueError(f"{LINEAGE} has no {name}")
    text = dict.fromkeys(["experiment", *ORIGIN, "setting", *lineage["knobs"]], str)
    points = _read(folder / "points.csv", text)
    if absent := [name for name in [*text, lineage["seed"], *lineage["metrics"]] if name not in points]:
        raise ValueError(f"points.csv has no column {', '.join(absent)}")
    return SweepFiles(folder, points, _read(folder / "curves.csv", {"experiment": str}), lineage)


def digest(content: Mapping[str, str]) -> str:
    """By what a mapping is known, whatever its order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def teacher_of(manifest: Mapping[str, Any]) -> str:
    """Which model a teacher's manifest tells of: by the sha256 of the file it came in, or its commit on the hub, or the
    sha256 of its weights, whatever wrote them down here."""
    facts, files = manifest.get("facts", {}), manifest.get("files", {})
    for name in ("sha256", "file_sha256"):
        if facts.get(name):
            return str(facts[name])
    if facts.get("commit"):
        return f"{facts.get('repo')}@{facts['commit']}"
    for content in (facts, files):
        if weights := {name: str(sha) for name, sha in content.items() if name.endswith(WEIGHTS)}:
            return digest(weights)
    return UNKNOWN


def source_files(lock: Mapping[str, Any], target: str) -> dict[str, str]:
    """By a dvc.lock, DVC's hash of what a target's stages read and no stage made: their code, and single files of data;
    of a target that is no stage, those of all stages. A target may be several, with spaces between."""
    stages = lock.get("stages", {})
    made = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", ())}
    hashes: dict[str, str] = {}
    named = target.split()
    waiting, told = named if named and {*named} <= {*stages} else [*stages], set[str]()
    while waiting:
        name = waiting.pop()
        if name in told:
            continue
        told.add(name)
        for dep in stages[name].get("deps", ()):
            makers = [maker for out, maker in made.items() if _overlap(dep["path"], out)]
            waiting += makers
            if not makers and (dep["path"].startswith(SOURCES) or not str(dep["md5"]).endswith(".dir")):
                hashes[dep["path"]] = str(dep["md5"])
    return dict(sorted(hashes.items()))


def changed(code: Mapping[str, str], root: Path) -> list[str]:
    """Those of the files and folders that are not now what they were."""
    return [path for path, md5 in code.items() if dvc_hashes.path_md5(root / path) != md5]


def wrong_digests(files: SweepFiles) -> Iterable[str]:
    """The digests of lineage.json that are not those of the files that stand there."""
    return (name for name, listing in files.lineage["code"].items() if digest(listing) != name)


def _read(file: Path, text: Mapping[str, type]) -> pd.DataFrame:
    """A table in which an empty cell is missing, and nothing else: settings may be called null or nan."""
    return pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=dict(text), float_precision="round_trip")


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other, or lies in it."""
    a, b = one.split("/"), other.split("/")
    return a[: len(b)] == b[: len(a)]
