"""Knobs by their dotted names, as in `distill.freeze`: what they are in params.yaml, and what a point makes of them."""

import copy
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.serialize import modify_yaml, parse_yaml_for_update

from pipeline.knobs import params, yaml_1_2
from pipeline.knobs.names import unknown

SLUG = 60  # letters of a setting in an experiment's name


def read(file: Path) -> dict[str, Any]:
    """The params file as it stands, checked.

    Raises:
        ValueError: it has bad knobs; all of them are named.
    """
    try:
        params.load(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; run this in the project's own folder") from None
    return yaml_1_2.parse(file.read_text(encoding="utf-8"))


def value(tree: dict[str, Any], knob: str) -> Any:
    """A knob's value.

    Raises:
        KeyError: there is no such knob.
    """
    for part in knob.split("."):
        if not isinstance(tree, dict) or part not in tree:
            raise KeyError(knob)
        tree = tree[part]
    return tree


def missing(tree: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    """A message for each name that is no knob of the tree, with those that its section has."""
    problems = {}
    for name in names:
        try:
            value(tree, name)
        except KeyError:
            section, above = tree, ""
            for part in name.split("."):
                if not isinstance(section.get(part), dict):
                    break
                section, above = section[part], f"{above}{part}."
            problems[name] = unknown("knob", name, (above + other for other in section))
    return problems


def changed(tree: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree with some knobs changed, all of which it has."""
    tree = copy.deepcopy(tree)
    _change(tree, overrides)
    return tree


def refused(file: Path, base: dict[str, Any], points: dict[str, dict[str, Any]]) -> list[str]:
    """What the params' own checks say against the overrides of each point, each one once, with its points."""
    refusals: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / file.name
        for label, overrides in points.items():
            trial.write_text(json.dumps(changed(base, overrides), default=str), encoding="utf-8")  # JSON is YAML
            try:
                params.load(trial)
            except ValueError as error:
                for line in str(error).splitlines()[1:]:
                    refusals.setdefault(line.strip(), []).append(label)
    more = {message: f" and {len(labels) - 1} more" if labels[1:] else "" for message, labels in refusals.items()}
    return [f"{message} (point {labels[0]}{more[message]})" for message, labels in refusals.items()]


def write(file: Path, overrides: dict[str, Any]) -> None:
    """Change knobs of a params file in place, its comments kept, as `dvc exp run -S` does."""
    # Through PyYAML's text, as DVC's own writer makes 1e-05 of 0.00001, which PyYAML reads as text.
    written = parse_yaml_for_update(yaml.safe_dump(overrides), str(file))
    with modify_yaml(file) as tree:
        _change(tree, written)


def label(setting: dict[str, Any]) -> str:
    """A setting as a person reads it: one knob's value, or several as freeze=ov lr=0.0001."""
    if len(setting) == 1:
        return text(*setting.values())
    return " ".join(f"{short}={text(value)}" for short, value in zip(_short([*setting]), setting.values(), strict=True))


def text(value: Any) -> str:
    """A value in a table's cell, or in a label: JSON where it is no scalar, and the same for 1 and 1.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value) if isinstance(value, (dict, list, bool)) or value is None else str(value)


def slug(setting: dict[str, Any]) -> str:
    """A setting as a part of an experiment's name, which Git takes as a part of a ref's."""
    cleaned = re.sub(r"[^\w=+.]+", "-", label(setting))
    return re.sub(r"\.+", ".", cleaned)[:SLUG].strip("-.") or "point"


def _short(names: list[str]) -> list[str]:
    """The last part of each name where that tells them apart, or else the whole."""
    ends = [name.rpartition(".")[2] for name in names]
    return [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]


def _change(tree: dict[str, Any], overrides: dict[str, Any]) -> None:
    for knob, new in overrides.items():
        *sections, name = knob.split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[name] = new
