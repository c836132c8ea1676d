"""What a stage reads by dvc.yaml, as it is when the stage begins: its knobs, its code, its data.

DVC looks at them when a stage has ended, and would note what was edited meanwhile as what the stage ran with.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import reading

STAGES, KNOBS = Path("dvc.yaml"), Path("params.yaml")
ABSENT = object()  # the value of a knob that is not there; None is one


@dataclass(frozen=True)
class Inputs:
    """knobs: their values by dotted names. code: the md5 of each file. data: size and time (ns) of each file."""

    knobs: dict[str, Any]
    code: dict[str, str]
    data: dict[str, tuple[int, int]]

    def changed(self, now: "Inputs") -> list[str]:
        """What is not the same now, a line each."""
        knobs = [
            f"{KNOBS}: {knob} was {self.knobs.get(knob, 'not there')}, and is {now.knobs.get(knob, 'not there')}"
            for knob in differing(self.knobs, now.knobs)
        ]
        return [*knobs, *differing(self.code, now.code), *differing(self.data, now.data)]


def read(stage: str, code: Mapping[str, str]) -> Inputs:
    """What a stage of dvc.yaml reads; where there is no such stage, all knobs, and nothing else.

    Args:
        code: the md5 of the project's source files, by path.
    """
    knobs = flat(_mapping(KNOBS))
    entry = _mapping(STAGES).get("stages", {}).get(stage)
    if entry is None:
        return Inputs(knobs, {}, {})
    entry = entry.get("do", entry)
    asked = [name for name in entry.get("params", ()) if isinstance(name, str)]
    deps = [dep for dep in entry.get("deps", ()) if "${" not in dep]  # of a foreach, what its stages have in common
    data = {path: found for dep in deps if dep not in code for path, found in _files(Path(dep))}
    return Inputs(under(asked, knobs), {dep: code[dep] for dep in deps if dep in code}, data)


def under(names: Iterable[str], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of all knobs that are asked for, by their names or by their sections'."""
    asked = tuple(f"{name}." for name in names)
    return {knob: value for knob, value in knobs.items() if f"{knob}.".startswith(asked)}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A tree of knobs by their dotted names; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names that do not stand for the same in both."""
    return [name for name in dict.fromkeys([*one, *other]) if one.get(name, ABSENT) != other.get(name, ABSENT)]


def _mapping(file: Path) -> dict[str, Any]:
    """A YAML file; empty where there is none, or it is none, which is for others to complain of."""
    try:
        content = yaml.load(file.read_bytes(), Loader=reading.Loader)
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _files(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            yield file.as_posix(), (file.stat().st_size, file.stat().st_mtime_ns)
