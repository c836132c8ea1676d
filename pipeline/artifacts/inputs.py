"""What a stage reads by dvc.yaml, as it is when the stage begins: its knobs, its code, its data.

DVC looks at them when a stage has ended, and would note what was edited meanwhile as what the stage ran with. Paths
that depend on knobs, or on which stage of a foreach or matrix it is, are worked out by DVC's own resolver.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.artifacts.contract import MANIFEST, sha256
from pipeline.knobs import yaml_1_2

STAGES, KNOBS = Path("dvc.yaml"), Path("params.yaml")
ABSENT = object()  # the value of a knob that is not there; None is one


@dataclass(frozen=True)
class File:
    """sha256: of its content. state: inode, size in bytes, time in ns; while these are the same, so is the content."""

    sha256: str
    state: tuple[int, int, int] = field(compare=False)


@dataclass(frozen=True)
class Inputs:
    """knobs: their values by dotted names. code: the md5 of each file, by path. data: the files, by path."""

    knobs: dict[str, Any]
    code: dict[str, str]
    data: dict[str, File]

    def changed(self, now: "Inputs") -> list[str]:
        """What is not the same now, a line each."""
        knobs = [
            f"{KNOBS}: {knob} was {self.knobs.get(knob, 'not there')}, and is {now.knobs.get(knob, 'not there')}"
            for knob in differing(self.knobs, now.knobs)
        ]
        return [*knobs, *differing(self.code, now.code), *differing(self.data, now.data)]


def read(stage: str, code: Mapping[str, str], before: Inputs | None = None) -> Inputs:
    """What a stage of dvc.yaml reads; where there is no such stage, all knobs, and nothing else.

    Of a foreach or matrix it is what DVC says by DVC_STAGE that runs; where DVC runs none, what all have in common.

    Args:
        code: the md5 of the project's source files, by path; a dep is one of them, or a folder of some.
        before: what it read earlier; a file in the same state is not read again. Without it, the content of a file that
            an artifact's manifest lists is what that says, which is for the stage to check.
    """
    knobs = flat(_mapping(KNOBS))
    flow = _mapping(STAGES)
    entry = flow.get("stages", {}).get(stage)
    if entry is None:
        return Inputs(knobs, {}, {})
    entry = entry.get("do", entry)
    asked = [name for name in entry.get("params", ()) if isinstance(name, str)]
    deps = _resolved(stage, flow, entry)
    sources = {dep: {path: md5 for path, md5 in code.items() if _lies_in(path, dep)} for dep in deps}
    data = {file.as_posix(): file for dep in deps if not sources[dep] for file in _files(Path(dep))}
    known = before.data if before else {}
    claims = {} if before else _claims({file.parent for file in data.values()})
    files = {path: _file(file, known.get(path), claims.get(path)) for path, file in data.items()}
    read_code = {path: md5 for files_of_dep in sources.values() for path, md5 in files_of_dep.items()}
    return Inputs(under(asked, knobs), read_code, files)


def _resolved(stage: str, flow: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """The paths of a stage's deps; those that cannot be worked out are left out."""
    deps = [dep for dep in entry.get("deps", ()) if isinstance(dep, str)]
    if not any("${" in dep for dep in deps):
        return deps
    from dvc.exceptions import DvcException  # here: half a second, which most stages need not spend
    from dvc.fs import LocalFileSystem
    from dvc.parsing import DataResolver

    resolver = DataResolver(SimpleNamespace(fs=LocalFileSystem(), config={}), ".", flow)
    running = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if running.partition("@")[0] == stage and resolver.has_key(running):
        with suppress(DvcException):  # of a knob that is not there the stage will complain
            deps = resolver.resolve_one(running)[running]["deps"]
    resolved = []
    for dep in deps:
        with suppress(DvcException):  # as ${item} where no DVC says which it is
            resolved.append(resolver.context.resolve(dep))
    return resolved


def under(names: Iterable[str], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of all knobs that are asked for, by their names or by their sections'."""
    asked = tuple(f"{name}." for name in names)
    return {knob: value for knob, value in knobs.items() if f"{knob}.".startswith(asked)}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A tree of knobs by their dotted names; an empty mapping is a value."""
    knobs: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        knobs |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return knobs


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names that do not stand for the same in both."""
    return [name for name in dict.fromkeys([*one, *other]) if one.get(name, ABSENT) != other.get(name, ABSENT)]


def _mapping(file: Path) -> dict[str, Any]:
    """A YAML file; empty where there is none, or it is none, which is for others to complain of."""
    try:
        content = yaml_1_2.parse(file.read_bytes())
    except (OSError, yaml_1_2.Error):
        return {}
    return content if isinstance(content, dict) else {}


def _lies_in(path: str, dep: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


def _files(path: Path) -> list[Path]:
    return [file for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()]


def _file(file: Path, before: File | None, claim: str | None) -> File:
    stat = file.stat()
    state = stat.st_ino, stat.st_size, stat.st_mtime_ns
    if before is not None and before.state == state:
        return before
    return File(claim or sha256(file), state)


def _claims(folders: Iterable[Path]) -> dict[str, str]:
    """The sha256 of each file that the manifest of one of these folders lists, by path."""
    claims = dict[str, str]()
    for folder in folders:
        try:
            files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
            claims |= {(folder / name).as_posix(): str(content) for name, content in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no artifact, or none that is whole
            continue
    return claims
