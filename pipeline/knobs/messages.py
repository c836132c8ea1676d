"""What pydantic finds wrong with params.yaml, in the words of this project: a line a knob, with the way out."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.knobs.names import unknown

TAGS = {"number", "name", "list", "made", "short", "long"}  # of the arms of unions, which stand among pydantic's places
EXPECTED = {"int_type": "int", "float_type": "float", "bool_type": "bool", "string_type": "str"}
SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
SCHEME = "W4A8KV4 and the like, or a section of knobs"


def lines(error: ValidationError, kind: type) -> list[tuple[tuple[str | int, ...], str]]:
    """Where each problem is, keys and indices from the top, and what it is, with the knob's dotted name before it.

    Args:
        kind: the dataclass of the whole file.
    """
    placed_lines = []
    for problem in error.errors():
        place = _place(problem["loc"])
        placed_lines.append((place, _line(place, problem, kind)))
    return placed_lines


def dotted(place: Sequence[str | int]) -> str:
    """A knob's name: scheme.overrides[0].weights."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _place(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """pydantic's place without the arms of unions. No knob of a section is called as one of them."""
    return tuple(part for part in loc if part not in TAGS or isinstance(part, int))


def _line(place: tuple[str | int, ...], problem: Any, kind: type) -> str:
    name, what, value, context = dotted(place), problem["type"], problem["input"], problem.get("ctx", {})
    if what == "unexpected_keyword_argument":
        return unknown("knob", name, (dotted((*place[:-1], other)) for other in _knobs(kind, place[:-1])))
    if what == "invalid_key":  # one that is no text
        return unknown("knob", f"{dotted(place[:-1])}.{place[-1]}".removeprefix("."), _knobs(kind, place[:-1]))
    if what == "missing":
        return f"{name}: missing"
    if what == "dataclass_type":
        return f"{name or 'the file'}: expected {SCHEME if name == 'scheme' else 'a section of knobs'}, got {value!r}"
    if what == "literal_error":
        return f"{name}: {_name(value, [*_choices(context['expected'])])}"
    if what in EXPECTED:
        return f"{name}: expected {EXPECTED[what]}, got {value!r} ({type(value).__name__}){_way_out(what, value)}"
    if what in ("list_type", "too_short"):
        least = " with at least one entry" if name.rpartition(".")[2] != "overrides" else ""
        return f"{name}: expected a list{least}, got {value!r}"
    if what == "finite_number":
        return f"{name}: expected a finite number, got {value}"
    if what == "value_error":
        return f"{name}: {context['error']}"
    ((sign, end),) = context.items()
    return f"{name}: must be {SIGNS[sign]} {end:g}, got {value}"


def _choices(expected: str) -> Iterator[str]:
    """The names or numbers in pydantic's list: 'a', 'b' or 'c'."""
    for part in expected.replace(" or ", ", ").split(", "):
        yield part.strip("'")


def _name(value: Any, choices: list[str]) -> str:
    """An answer to a name that there is not, or to a number in quotes or in another type."""
    if str(value) in choices and not isinstance(value, bool):
        meant = "int" if str(value).isdigit() else "str"
        return f"expected {meant}, got {value!r} ({type(value).__name__})"
    return unknown("value", value, choices)


def _way_out(what: str, value: Any) -> str:
    """How to write what has the wrong type, where that is plain: a number in quotes, or a text that looks like one."""
    try:
        if what == "float_type" and isinstance(value, str) and value.strip()[-1:].isdigit():
            return f"; without quotes it is a number, {float(value)!r}"
    except ValueError:
        return ""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "; put it in quotes" if what == "string_type" and number else ""


def _knobs(kind: Any, place: Sequence[str | int]) -> list[str]:
    """The names of the fields of the dataclass at a place."""
    for part in place:
        hint = typing.get_type_hints(kind, include_extras=True)[part] if isinstance(part, str) else kind
        kind = _dataclass(hint)
        if kind is None:
            return []
    return [field.name for field in dataclasses.fields(kind)]


def _dataclass(hint: Any) -> Any:
    """The dataclass in a type, perhaps within Annotated, a union or a list."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    inner = (_dataclass(arm) for arm in typing.get_args(hint))
    return next((kind for kind in inner if kind is not None), None)
