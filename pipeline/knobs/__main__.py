"""Print docs/all-knobs.md: every knob with its default and its meaning.

python -m pipeline.knobs > docs/all-knobs.md
"""

import dataclasses
from pathlib import Path
from typing import Any

from pipeline.knobs import yaml_1_2
from pipeline.knobs.params import Params

INTRODUCTION = """# All knobs

By section of `params.yaml`, with the value that it is shipped with. `python -m pipeline.knobs` prints this page.
[knobs](knobs.md) says how to set them, and explains schemes and float types.
"""


def page(shipped: dict[str, Any]) -> str:
    """The page in Markdown, for knobs with these values."""
    shared = {field.name: field for field in dataclasses.fields(Params) if not dataclasses.is_dataclass(field.type)}
    rows = [_row(name, shipped[name], field) for name, field in shared.items()]
    parts = [INTRODUCTION, "\n".join(["## Shared", "", *HEAD, *rows])]
    for section in dataclasses.fields(Params):
        if dataclasses.is_dataclass(section.type):
            rows = [_row(f.name, shipped[section.name][f.name], f) for f in dataclasses.fields(section.type)]
            parts.append("\n".join([f"## {section.name}", "", *HEAD, *rows]))
    return "\n\n".join([parts[0].rstrip(), *parts[1:], "Next: [methods](methods.md)."]) + "\n"


HEAD = ("| knob | shipped | meaning |", "|---|---|---|")


def _row(name: str, value: Any, field: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else text
    return f"| `{name}` | {text} | {description(field).replace('|', chr(92) + '|')} |"


def description(field: Any) -> str:
    """What a knob means."""
    return str(field.default.description)


if __name__ == "__main__":
    print(page(yaml_1_2.parse(Path("params.yaml").read_text(encoding="utf-8"))), end="")
