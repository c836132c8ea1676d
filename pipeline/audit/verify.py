"""Whether what lies in the project is what its stages made: every hash taken anew, every number worked out again."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.artifacts import dvc_hashes
from pipeline.artifacts.contract import MANIFEST, sha256
from pipeline.artifacts.environment import PYTHON, TOPICS, fits
from pipeline.artifacts.inputs import differing
from pipeline.audit import recomputed
from pipeline.audit.cache import Cache
from pipeline.audit.finding import Finding
from pipeline.audit.locks import LOCK, PARAMS, PINS, Lock, Stage, command, overlap, some
from pipeline.audit.trees import Git, WorkingTree
from pipeline.audit.versions import Version

SOURCES = ("pipeline/", "stages/")  # where code lies


def verify(git: Git, version: Version, cache: Cache, advance: Callable[[str], object]) -> list[Finding]:
    """All that is wrong with the working tree, and all that could not be checked.

    Hashes of all that lies in the project against dvc.lock, and file by file against the manifests; dvc.lock against
    itself, dvc.yaml (commands, and what each stage reads and makes), the code, the knobs, and what each stage wrote
    down of what it ran with; the scores against their items and the model's file, and the report's numbers against the
    scores.

    Args:
        version: the working tree. advance: called with each path before it is hashed.
    """
    root, findings = git.root, list[Finding]()
    for stage in version.lock.stages.values():
        for path, md5 in stage.outs.items():
            advance(path)
            findings += _content(root, stage, path, md5, cache)
    stale = version.lock.stale(WorkingTree(root))  # what an edited report is, is told among the hashes
    findings += [Finding(stage, f"stale: {some(reasons)}") for stage, reasons in stale.items()]
    strays = _strays(git, version.lock)
    runs = [*_declared(root, version.lock), *_recorded(root, version)]
    return [*findings, *strays, *runs, *recomputed.scores(root, version), *recomputed.report(root, version)]


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
        if dvc_hashes.folder_md5(hashes.items()) != md5:
            yield from _files(path, stage, hashes, cache.listing(md5))
        artifacts = [file.parent for file in files if file.name == MANIFEST] or [where]  # an export is one a format
        for folder in artifacts:
            yield from _manifest(folder.relative_to(root).as_posix(), folder)


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield Finding(f"{path}/{MANIFEST}", "it is missing, or no manifest")
        return
    for name, expected in files:
        if (folder / name).is_file() and sha256(folder / name) != expected:
            yield Finding(f"{path}/{name}", "its sha256 is not the one in the manifest")


def _strays(git: Git, lock: Lock) -> Iterator[Finding]:
    """Files beside what stages made that neither a stage made or read, nor Git has or ignores."""
    known = {path for stage in lock.stages.values() for path in (*stage.outs, *stage.deps)}
    folders = {path.split("/")[0] for stage in lock.stages.values() for path in stage.outs}
    listing = git.run("ls-files", "-z", "--others", "--exclude-standard", *sorted(folders)) if folders else ""
    for path in listing.split("\0"):
        if path and not any(overlap(path, known_path) for known_path in known):
            yield Finding(path, "no stage made it, and Git does not have it")


def _declared(root: Path, lock: Lock) -> Iterator[Finding]:
    """Where dvc.yaml and the runs that dvc.lock tells of differ: stages, their commands, what they read and make."""
    try:
        with Repo(str(root)) as repo:
            stages = {stage.addressing: stage for stage in repo.index.stages if stage.cmd}
    except DvcException as error:
        yield Finding("dvc.yaml", str(error))
        return
    yield from (Finding(name, f"{LOCK} has it, dvc.yaml has not") for name in lock.stages if name not in stages)
    for name, stage in stages.items():
        if name not in lock.stages:
            yield Finding(name, "it was never run")
            continue
        ran = lock.stages[name]
        if ran.cmd != command(stage.cmd):
            yield Finding(name, "its command in dvc.yaml is not the one that was run")
        asked = {dep.def_path: dep.params for dep in stage.deps if isinstance(dep, ParamsDependency)}
        for what, wanted, had in (
            ("reads", [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)], ran.deps),
            ("reads the knobs", asked.get(PARAMS, ()), ran.asked),
            ("depends on", asked.get(PINS, ()), ran.pins),
            ("makes", [out.def_path for out in stage.outs], ran.outs),
        ):
            yield from _unlike(name, what, wanted, had)


def _recorded(root: Path, version: Version) -> Iterator[Finding]:
    """Where dvc.lock tells of other knobs, code or libraries than a stage wrote down of itself when it began.

    A record is read in the project, where it is what the stage wrote, or else in the cache.
    """
    for name, stage in version.lock.stages.items():
        path = stage.environment
        record = _record_here(root / path, stage.outs.get(path)) or version.environments.get(name)
        if not record:
            where = f"its record {path} is neither in the project nor in the cache" if path else "it wrote no record"
            yield Finding(name, f"what it ran with: {where}", checked=False)
            continue
        have = {PYTHON: record.get("python"), **record["libraries"]}
        knobs, code = record.get("knobs"), record.get("code")
        pins = {key: pin for key, pin in stage.pins.items() if key != PYTHON or TOPICS in stage.knobs.values()}
        ran_with = {key: pin if fits(pin, str(have.get(key))) else have.get(key) for key, pin in pins.items()}
        compared: list[tuple[str, dict[str, Any], dict[str, Any]]] = [("version of", ran_with, pins)]
        if isinstance(knobs, dict) and isinstance(code, dict):  # records of before 2026-11-27 have neither
            compared += [("knob", knobs, stage.knobs), ("md5 of", *_code(stage, code, version.lock))]
        for what, ran, noted in compared:
            for key in differing(ran, noted):
                problem = f"by {LOCK} the {what} {key} was {noted.get(key)}, by its own record {ran.get(key)}"
                yield Finding(name, problem)


def _code(stage: Stage, code: dict[str, str], lock: Lock) -> tuple[dict[str, str], dict[str, str]]:
    """The md5 of the code that a stage ran, by its deps: by its own record of files, and by dvc.lock."""
    noted = {dep: md5 for dep, md5 in lock.code(stage).items() if dep.startswith(SOURCES)}
    ran = dvc_hashes.of_deps(noted, code)
    beside = {path: md5 for path, md5 in code.items() if not any(overlap(path, dep) for dep in noted)}
    return {**ran, **beside}, noted


def _record_here(file: Path, md5: str | None) -> dict[str, Any]:
    """A stage's record as it lies in the project; empty where it is missing, another or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and _md5(file) == md5 else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("libraries"), dict) else {}


def _unlike(stage: str, what: str, wanted: Iterable[str], had: Iterable[str]) -> Iterator[Finding]:
    """What a stage reads or makes by one of dvc.yaml and dvc.lock alone."""
    wanted, had = {*wanted}, {*had}
    for here, there, names in (("dvc.yaml", LOCK, wanted - had), (LOCK, "dvc.yaml", had - wanted)):
        if names:
            yield Finding(stage, f"by {here} it {what} {', '.join(sorted(names))}; {there} does not know of it")


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
