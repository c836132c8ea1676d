"""A YAML mapping as frozen dataclasses: what is unknown, missing, there twice or ill-typed is named, all of it at once.

A field's type says what may stand there: a plain type, a `Literal` of names, a list of either, a number or a name
(`float | Literal["auto"]`), another dataclass, a freeze `Policy`, or a `Scheme`, which is written short or long.
"""

import math
import re
import types
import typing
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal

import yaml

from pipeline.knobs import freezing, scheme
from pipeline.knobs.names import unknown
from pipeline.knobs.scheme import Scheme

INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, with numbers as YAML 1.2 has them (core schema, section 10.3.2), and DVC with it.

    So 2e-05, which DVC writes, is a number, as are 1.0e-4 and 1e5; 1_000 and 1:30 are text, and 010 is ten.
    """

    def integer(self, node: yaml.ScalarNode) -> int:
        """Of a scalar that is an integer: decimal, 0o octal or 0x hexadecimal."""
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INTEGER, FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(INTEGER, re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), [*"-+0123456789"])
Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    [*"-+.0123456789"],
)
Loader.add_constructor(INTEGER, Loader.integer)


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
        return _value(_arm(typing.get_args(hint), value), value, name, problems)
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
        problems.append(
            f"{name}: expected {hint.__name__}, got {value!r} ({type(value).__name__}){_wayout(hint, value)}"
        )
    return value


def _arm(arms: tuple[Any, ...], value: Any) -> Any:
    """Which arm of a union a value is meant for: a list for a list's, a name for a `Literal`'s, the rest for the other.

    A number in quotes is meant for the number.
    """
    special, other = sorted(arms, key=lambda arm: typing.get_origin(arm) not in (list, Literal))
    if typing.get_origin(special) is list:
        return special if isinstance(value, list) else other
    return special if isinstance(value, str) and not _wayout(other, value) else other


def _wayout(hint: Any, value: Any) -> str:
    """How to write what has the wrong type, where that is plain: a number in quotes, or a text that looks like one."""
    try:
        if hint is float and isinstance(value, str) and value.strip()[-1:].isdigit():
            return f"; without quotes it is a number, {float(value)!r}"
    except ValueError:
        return ""
    return (
        "; put it in quotes" if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool) else ""
    )
