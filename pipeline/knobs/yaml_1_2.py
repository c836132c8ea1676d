"""YAML 1.2, as DVC reads and writes it: 2e-05, 2.0e-5 and 0.00002 are one number, and `no` is a text."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError as Error
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

__all__ = ["Error", "compose", "line_of", "parse", "twice"]


def parse(text: str | bytes) -> Any:
    """What a YAML text holds; of a key that stands twice, the last value.

    Raises:
        Error: it is no YAML.
    """
    reader = YAML(typ="safe")  # with libyaml, where it is there: ten times faster
    reader.allow_duplicate_keys = True
    return reader.load(text)


def compose(text: str) -> Node | None:
    """The text's nodes, which know their lines; None of an empty one.

    Raises:
        Error: it is no YAML.
    """
    return YAML(typ="safe", pure=True).compose(text)


def twice(node: Node | None, name: str = "") -> list[str]:
    """The knobs that stand twice in a section, of which the last would count without a word."""
    if isinstance(node, SequenceNode):
        return [problem for i, entry in enumerate(node.value) for problem in twice(entry, f"{name}[{i}]")]
    problems, lines = [], dict[str, int]()
    for key, value in node.value if isinstance(node, MappingNode) else ():
        knob, line = f"{name}.{key.value}".removeprefix("."), key.start_mark.line + 1
        if knob in lines:
            problems.append(f"{knob}: stands twice, in lines {lines[knob]} and {line}")
        lines[knob] = line
        problems += twice(value, knob)
    return problems


def line_of(node: Node | None, place: tuple[str | int, ...]) -> int:
    """The line, from 1, of a value at a place, or of the last part of the way to it that there is; 0 of none."""
    line = 0
    for part in place:
        if isinstance(node, MappingNode):
            entries = [(key, value) for key, value in node.value if str(key.value) == str(part)]
            if not entries:
                return line
            key, node = entries[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
