"""A YAML mapping as frozen dataclasses: what is unknown, missing, there twice or ill-typed is named, all of it at once.

A field's type says what may stand there: a plain type, a `Literal` of names, a list of either, another dataclass, a
freeze `Policy`, or a `Scheme`, which is written short or long.
"""

import math
import re
import types
import typing
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal

import yaml

from pipeline import freezing, scheme
from pipeline.names import unknown
from pipeline.scheme import Scheme


def twice(node: yaml.Node | None, name: str) -> list[str]:
    """The knobs that stand twice in a section, of which YAML keeps the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        return [problem for i, entry in enumerate(node.value) for problem in twice(entry, f"{name}[{i}]")]
    problems, lines = [], dict[str, int]()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        knob, line = f"{name}.{key.value}".removeprefix("."), key.start_mark.line + 1
        if knob in lines:
            problems.append(f"{knob}: stands twice, in lines {lines[knob]} and {line}")
        lines[knob] = line
        problems += twice(value, knob)
    return problems


def section(kind: Any, tree: Any, prefix: str, problems: list[str]) -> Any:
    """A dataclass from a mapping; what is wrong is added to `problems`, and None stands for it."""
    values = _given(kind, tree, prefix, problems)
    if values is None:
        return None
    missing = [name for name in typing.get_type_hints(kind) if name not in values]
    problems += [f"{prefix}{name}: missing" for name in missing]
    return None if missing else kind(**values)


def _given(kind: Any, tree: Any, prefix: str, problems: list[str]) -> dict[str, Any] | None:
    """The dataclass's fields that a mapping holds; what is wrong is added to `problems`."""
    if not isinstance(tree, dict):
        problems.append(f"{prefix.rstrip('.') or 'the file'}: expected a section of knobs, got {tree!r}")
        return None
    hints = typing.get_type_hints(kind)
    problems += [unknown("knob", f"{prefix}{key}", (prefix + n for n in hints)) for key in tree if key not in hints]
    values = {}
    for field, hint in hints.items():
        if field not in tree:
            continue
        name, value = prefix + field, tree[field]
        if hint is Scheme:
            values[field] = _scheme(value, name, problems)
        elif is_dataclass(hint):
            values[field] = section(hint, value, name + ".", problems)
        else:
            before = len(problems)
            values[field] = _value(hint, value, name, problems)
            if hint == freezing.Policy and len(problems) == before:
                _check_policy(value, name, problems)
    return values


def _check_policy(policy: Any, name: str, problems: list[str]) -> None:
    """What cannot be read of a freeze policy is added to `problems`."""
    try:
        if policy != freezing.AUTO:
            freezing.terms(policy)
    except ValueError as error:
        problems.append(f"{name}: {error}")


def _scheme(tree: Any, name: str, problems: list[str]) -> Scheme | None:
    """A scheme written short or long; an override's fields that are left out are the scheme's own."""
    if isinstance(tree, str):
        try:
            return scheme.from_short(tree)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            return None
    if not isinstance(tree, dict):
        problems.append(f"{name}: expected W4A8KV4 and the like, or a section of knobs, got {tree!r}")
        return None
    entries = tree.get("overrides", [])
    if not isinstance(entries, list):
        problems.append(f"{name}.overrides: expected a list, got {entries!r}")
        entries = []
    base = section(_SchemeLong, {key: tree[key] for key in tree if key != "overrides"}, name + ".", problems)
    overrides = [_override(base, entry, f"{name}.overrides[{i}].", problems) for i, entry in enumerate(entries)]
    if base is None:
        return None
    return Scheme(base.weights, base.activations, base.kv_cache, tuple(o for o in overrides if o is not None))


@dataclass(frozen=True)
class _SchemeLong:
    """The long form, less its overrides."""

    weights: scheme.Weights
    activations: scheme.Activations
    kv_cache: scheme.KVCache


def _override(base: _SchemeLong | None, entry: Any, prefix: str, problems: list[str]) -> scheme.Override | None:
    kinds = {"weights": scheme.Weights, "activations": scheme.Activations}
    if not isinstance(entry, dict) or not isinstance(entry.get("match"), str) or not set(entry) & set(kinds):
        problems.append(f"{prefix.rstrip('.')}: expected a match with weights or activations, got {entry!r}")
        return None
    known = ("match", *kinds)
    problems += [unknown("knob", f"{prefix}{key}", (prefix + n for n in known)) for key in entry if key not in known]
    found: dict[str, Any] = {}
    for part in [part for part in kinds if part in entry]:
        given, own = _given(kinds[part], entry[part], f"{prefix}{part}.", problems), getattr(base, part, None)
        found[part] = None if given is None or own is None else replace(own, **given)
    return scheme.Override(entry["match"], **found)


def _value(hint: Any, value: Any, name: str, problems: list[str]) -> Any:
    """A knob's value, an int widened to float where a float is due; what is wrong is added to `problems`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        list_hint, other = sorted(typing.get_args(hint), key=lambda arm: typing.get_origin(arm) is not list)
        return _value(list_hint if isinstance(value, list) else other, value, name, problems)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            meant = [choice for choice in choices if str(choice) == str(value)]  # '4' for 4
            problems += [f"{name}: expected {type(m).__name__}, got {value!r} ({type(value).__name__})" for m in meant]
            if not meant:
                problems.append(f"{name}: " + unknown("value", value, map(str, choices)))
    elif typing.get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            problems.append(f"{name}: expected a list with at least one entry, got {value!r}")
        else:
            (entry,) = typing.get_args(hint)
            return [_value(entry, item, f"{name}[{i}]", problems) for i, item in enumerate(value)]
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is float and type(value) is float and not math.isfinite(value):
        problems.append(f"{name}: expected a finite number, got {value}")
    elif type(value) is not hint:
        wayout = f"; in YAML this is text, write {_yaml_float(value)}" if hint is float and _yaml_float(value) else ""
        problems.append(f"{name}: expected {hint.__name__}, got {value!r} ({type(value).__name__}){wayout}")
    return value


def _yaml_float(text: object) -> str | None:
    """How YAML 1.1 writes a number that has an exponent: with a point and a sign, 1.0e-4 for 1e-4. None: it is none."""
    found = re.fullmatch(r"([-+]?)(\d*)\.?(\d*)[eE]([-+]?)(\d+)", text) if isinstance(text, str) else None
    if found is None or not found[2] + found[3]:
        return None
    return f"{found[1]}{found[2] or 0}.{found[3] or 0}e{found[4] or '+'}{found[5]}"
