"""What is said of each knob: in sections.py, beside it in params.yaml, and in docs/all-knobs.md."""

import dataclasses
import re

from pipeline.knobs import __main__ as documents
from pipeline.knobs import yaml_1_2
from pipeline.knobs.params import Params
from tests.unit.knobs.files import ROOT

COMMENT = re.compile(r"(?:^|\s)# ?(.*)$")


def comments() -> dict[str, str]:
    """The comment beside each knob in params.yaml, its lines as one text, by the knob's dotted name."""
    texts: dict[str, list[str]] = {}
    section = knob = ""
    for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines():
        named = re.match(r"(  )?(\w+):", line)
        if named:
            section = section if named[1] else named[2]
            knob = f"{section}.{named[2]}" if named[1] else section
            texts[knob] = []
        comment = COMMENT.search(line)
        if not line.strip() or line.startswith("#"):
            knob = ""
        elif knob and comment:
            texts[knob].append(comment[1].strip())
    return {name: " ".join(parts) for name, parts in texts.items()}


def test_the_comments_in_params_yaml_are_what_the_sections_say() -> None:
    said = comments()
    for section in dataclasses.fields(Params):
        if dataclasses.is_dataclass(section.type):
            for knob in dataclasses.fields(section.type):
                assert said[f"{section.name}.{knob.name}"] == documents.description(knob)
        else:
            assert said[section.name] == documents.description(section)


def test_the_page_of_all_knobs_is_what_the_sections_say() -> None:
    """`python -m pipeline.knobs > docs/all-knobs.md` makes it."""
    shipped = yaml_1_2.parse((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert (ROOT / "docs/all-knobs.md").read_text(encoding="utf-8") == documents.page(shipped)
