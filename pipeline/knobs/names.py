"""Look a name up in a table, and answer a wrong one with what was meant and what there is."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def unknown(what: str, name: object, available: Iterable[str]) -> str:
    """The message for a name that is not available, with a suggestion where one is near."""
    available = list(available)
    turned = [other for other in available if sorted(other) == sorted(str(name))]  # vo for ov
    near = turned or get_close_matches(str(name), available, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}available: {', '.join(available)}"


def look_up(what: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`.

    Raises:
        ValueError: there is no such name; the message suggests the nearest one and lists all.
    """
    if name not in table:
        raise ValueError(unknown(what, name, table))
    return table[name]
