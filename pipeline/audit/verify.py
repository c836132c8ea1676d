"""Whether what lies in the project is what its stages made: every hash taken anew, every number worked out again."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from safetensors import SafetensorError

from pipeline.artifacts.contract import MANIFEST, sha256
from pipeline.artifacts.environment import PYTHON, TOPICS, fits
from pipeline.artifacts.inputs import differing
from pipeline.audit import numbers
from pipeline.audit.cache import Cache
from pipeline.audit.locks import LOCK, PARAMS, PINS, Lock, Stage, command, overlap, some
from pipeline.audit.trees import Git, WorkingTree, folder_md5
from pipeline.audit.versions import EVALUATE, Version, summary_file
from pipeline.evaluation.items import Items
from pipeline.report import summary

MODEL, TEACHER = "--model", "--teacher"  # before the paths of what is scored and of its teacher, in evaluate's command
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, ArithmeticError)  # what damaged files give
CLOSE = 1e-9  # of a number that is worked out again, relative


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: a path or a stage, and what is wrong with it.

    checked: whether it was; if not, the problem is why it could not be.
    """

    what: str
    problem: str
    checked: bool = True


def verify(git: Git, version: Version, cache: Cache, advance: Callable[[str], object]) -> list[Finding]:
    """All that is wrong with the working tree, and all that could not be checked.

    Hashes of all that lies in the project against dvc.lock, and file by file against the manifests; dvc.lock against
    itself, dvc.yaml (commands, and what each stage reads and makes), the code, the knobs, and what each stage wrote
    down of what it ran with; the scores against their items and the model's file, and the report's numbers against the
    scores.

    Args:
        version: the working tree. advance: called with each path before it is hashed.
    """
    root, found = git.root, list[Finding]()
    for stage in version.lock.stages.values():
        for path, md5 in stage.outs.items():
            advance(path)
            found += _content(root, stage, path, md5, cache)
    stale = version.lock.stale(WorkingTree(root))  # what an edited report is, is told among the hashes
    found += [Finding(stage, f"stale: {some(reasons)}") for stage, reasons in stale.items()]
    strays = _strays(git, version.lock)
    runs = [*_declared(root, version.lock), *_recorded(root, version)]
    return [*found, *strays, *runs, *_scores(root, version), *_summary(root, version)]


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
        if path and not any(overlap(path, each) for each in known):
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
            compared += [("knob", knobs, stage.knobs), ("md5 of", code, {path: stage.deps.get(path) for path in code})]
        for what, ran, noted in compared:
            for key in differing(ran, noted):
                problem = f"by {LOCK} the {what} {key} was {noted.get(key)}, by its own record {ran.get(key)}"
                yield Finding(name, problem)


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


def _scores(root: Path, version: Version) -> Iterator[Finding]:
    """Scores that do not follow from their items and from the model's file."""
    for variant in version.variants:
        stage, file = version.lock.stages[f"{EVALUATE}{variant}"], version.scores(variant)
        content = WorkingTree(root).read(file) if file else None
        if file is None or content is None:
            continue  # told among the hashes
        found, expected, whole = numbers.read(content), dict[str, float](), True
        if found is None:
            yield Finding(file, "it holds no numbers by name")
            continue
        folder = version.items_folder(variant)
        model, teacher = (re.search(rf"{each} (\S+)", stage.cmd) for each in (MODEL, TEACHER))
        give_size = partial(numbers.of_model, teacher=root / teacher[1]) if teacher else None
        for source, give in ((folder, _of_items), (model and model[1], give_size)):
            try:
                expected |= give(root / source) if source and give else {}
            except UNREADABLE as error:
                yield Finding(file, f"it cannot be held against {source}: {error!r}")
                whole = False
        sure = whole and folder and model and teacher
        unpacked = {numbers.SIZES[1]} - {*expected}  # of such weights the files do not tell it
        names = {*expected, *(found if sure else ())} - unpacked
        yield from _differing(file, found, expected, sorted(names), "what it was made from gives")
        left = sorted({*found} - names) if whole else []
        if left:
            yield Finding(file, f"{', '.join(left)}: nothing that it was made from tells of it", checked=False)


def _of_items(folder: Path) -> dict[str, float]:
    return numbers.of_items(Items.load(folder))


def _summary(root: Path, version: Version) -> Iterator[Finding]:
    """Numbers of the report that do not follow from the scores."""
    tree, path = WorkingTree(root), summary_file(version.lock)
    content = tree.read(path) if path else None
    files = {variant: version.scores(variant) for variant in version.variants}
    contents = {variant: tree.read(file) for variant, file in files.items() if file}
    if path is None or content is None:
        return  # told among the hashes, if a stage made it
    missing = [variant for variant in summary.VARIANTS if numbers.read(contents.get(variant)) is None]
    if missing:
        yield Finding(path, f"its numbers: there are no scores of {', '.join(missing)} to read", checked=False)
        return
    found = numbers.read(content)
    if found is None:
        yield Finding(path, "it holds no numbers by name")
        return
    try:
        scores = {variant: json.loads(contents[variant] or b"") for variant in summary.VARIANTS}
        folders = {variant: version.items_folder(variant) for variant in summary.VARIANTS}
        lost = [variant for variant, folder in folders.items() if folder is None]
        if lost:
            yield Finding(path, f"the gap won back: there are no items of {', '.join(lost)} to read", checked=False)
            yield from _differing(path, found, summary.of_scores(scores), summary.of_scores(scores), "the scores give")
            return
        documents = {variant: Items.load(root / (folder or "")).documents for variant, folder in folders.items()}
        expected = summary.summarize(scores, documents)
    except KeyError as error:
        yield Finding(path, f"the scores that it is made from have no {error}")
        return
    except UNREADABLE as error:
        yield Finding(path, f"it cannot be held against the scores and items: {error}")
        return
    yield from _differing(path, found, expected, [*expected, *found], "the scores give")


def _differing(
    file: str, found: dict[str, float], expected: dict[str, float], names: Iterable[str], giver: str
) -> Iterator[Finding]:
    """Numbers that are not what they should be; of a standard error of one item there is nothing to say."""
    for name in dict.fromkeys(names):
        here, there = found.get(name), expected.get(name)
        if there is not None and math.isnan(there):
            continue
        if here is None or there is None or not math.isclose(here, there, rel_tol=CLOSE, abs_tol=CLOSE):
            yield Finding(file, f"{name} is {here}, but {giver} {there}")


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
