"""Whether what lies in the project is what its stages made: every hash taken anew, every number worked out again."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.artifacts import MANIFEST, sha256
from pipeline.audit.cache import Cache
from pipeline.audit.locks import LOCK, Lock, Stage, command, some
from pipeline.audit.trees import WorkingTree, folder_md5
from pipeline.audit.versions import EVALUATE, REPORT, Version, written
from pipeline.bench.items import Items
from pipeline.report import summary

CLOSE = 1e-9  # of a number that is worked out again, relative


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: a path or a stage, and what is wrong with it."""

    what: str
    problem: str


def verify(root: Path, version: Version, cache: Cache, advance: Callable[[str], object]) -> list[Finding]:
    """All that is wrong with the working tree.

    Hashes of all that lies in the project against dvc.lock, and file by file against the manifests; dvc.lock against
    itself, dvc.yaml, the code and the knobs; the scores against their items, and the report's numbers against the
    scores.

    Args:
        version: the working tree. advance: called with each path before it is hashed.
    """
    found: list[Finding] = []
    for stage in version.lock.stages.values():
        for path, md5 in stage.outs.items():
            advance(path)
            found += _content(root, stage, path, md5, cache)
    found += [Finding(stage, f"stale: {some(reasons)}") for stage, reasons in version.stale.items()]
    return [*found, *_commands(root, version.lock), *_numbers(root, version)]


def _content(root: Path, stage: Stage, path: str, md5: str, cache: Cache) -> Iterator[Finding]:
    """What is wrong with something that a stage made."""
    where = root / path
    if not where.exists():
        yield Finding(path, f"missing; `dvc checkout` or `dvc pull` brings it, `dvc repro {stage.name}` makes it anew")
    elif where.is_file():
        if _md5(where) != md5:
            yield Finding(path, f"its content is not what {stage.name} made (its md5 is not the one in {LOCK})")
    else:
        files = [file for file in sorted(where.rglob("*")) if file.is_file()]
        hashes = {file.relative_to(where).as_posix(): _md5(file) for file in files}
        if folder_md5(hashes.items()) != md5:
            yield from _files(path, stage, hashes, cache.listing(md5))
        yield from _manifest(path, where)


def _files(path: str, stage: Stage, here: dict[str, str], made: dict[str, str] | None) -> Iterator[Finding]:
    """Which files of a folder differ, where the cache still knows what it held."""
    if made is None:
        yield Finding(path, f"its content is not what {stage.name} made (its md5 is not the one in {LOCK})")
        return
    for name in sorted({*here, *made}):
        if here.get(name) != made.get(name):
            what = "missing" if name not in here else "changed" if name in made else f"not of {stage.name}'s making"
            yield Finding(f"{path}/{name}", f"{what} (md5 {here.get(name, 'none')}, {LOCK}'s {made.get(name, 'none')})")


def _manifest(path: str, folder: Path) -> Iterator[Finding]:
    """Which files of an artifact differ from its own manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        yield Finding(f"{path}/{MANIFEST}", "it is missing, or no manifest")
        return
    for name, expected in files:
        if (folder / name).is_file() and sha256(folder / name) != expected:
            yield Finding(f"{path}/{name}", "its sha256 is not the one in the manifest")


def _commands(root: Path, lock: Lock) -> Iterator[Finding]:
    """Stages of dvc.yaml that ran with another command, or never, and runs of stages that it has not."""
    try:
        with Repo(str(root)) as repo:
            stages = {stage.addressing: command(stage.cmd) for stage in repo.index.stages if stage.cmd}
    except DvcException as error:
        yield Finding("dvc.yaml", str(error))
        return
    for name, wanted in stages.items():
        if name not in lock.stages:
            yield Finding(name, "it was never run")
        elif lock.stages[name].cmd != wanted:
            yield Finding(name, "its command in dvc.yaml is not the one that was run")
    yield from (Finding(name, f"{LOCK} has it, dvc.yaml has not") for name in lock.stages if name not in stages)


def _numbers(root: Path, version: Version) -> Iterator[Finding]:
    """Scores that are not the means of their items, and numbers of the report that do not follow from the scores."""
    scores: dict[str, dict[str, float]] = {}
    for variant in version.variants:
        stage = version.lock.stages[f"{EVALUATE}{variant}"]
        folder = next((path for path, md5 in stage.made.items() if md5.endswith(".dir")), None)
        try:
            file = next(path for path in stage.made if path != folder)
            scores[variant] = json.loads((root / file).read_text(encoding="utf-8"))
            if folder is not None:
                for name, value in means(Items.load(root / folder)).items():
                    if not _close(scores[variant].get(name, np.nan), value):
                        yield Finding(file, f"{name} is {scores[variant].get(name)}, but its items give {value}")
        except (OSError, ValueError):
            continue  # told among the hashes
    if REPORT in version.lock.stages and {*summary.VARIANTS} <= {*scores}:
        path = next(path for path in version.lock.stages[REPORT].made if path.endswith(".json"))
        expected, found = summary.summarize(scores), written(WorkingTree(root), version.lock)
        for name in dict.fromkeys([*expected, *found]):
            here, there = found.get(name, np.nan), expected.get(name, np.nan)
            if not _close(here, there):
                yield Finding(path, f"{name} is {here}, but the scores give {there}")


def means(items: Items) -> dict[str, float]:
    """The scores that a variant's answers and documents come to."""
    found = {str(measure): float(part["value"].mean()) for measure, part in items.documents.groupby("measure")}
    tasks = {f"accuracy.{task}": float(part["correct"].mean()) for task, part in items.answers.groupby("task")}
    return found | tasks | ({"accuracy": sum(tasks.values()) / len(tasks)} if tasks else {})


def _close(one: float, other: float) -> bool:
    return bool(np.isclose(one, other, rtol=CLOSE, atol=CLOSE))


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
