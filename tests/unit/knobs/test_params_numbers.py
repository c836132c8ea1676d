"""Numbers in params.yaml: as YAML 1.2 has them."""

import math
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.knobs import params, yaml_1_2
from tests.unit.knobs.files import ROOT, load_text, load_with, problems


def load_written(tmp_path: Path, knob: str, written: str) -> params.Params:
    """The shipped file with another text after a knob's name, comments and all."""
    changed, count = re.subn(rf"(?m)^(  )?{knob}: \S+", rf"\g<1>{knob}: {written}", (ROOT / "params.yaml").read_text())
    assert count == 1
    return load_text(tmp_path, changed)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2e-05", 2e-5),  # as `dvc exp run -S distill.lr=2.0e-5` writes it
        ("1e-4", 1e-4),
        ("1.5e3", 1.5e3),
        ("2E-5", 2e-5),
        ("1.", 1.0),
        ("2.0e-4", 2e-4),
        ("3", 3.0),
        ("010", 10.0),
    ],
)
def test_a_number_is_read_as_yaml_1_2_has_it(tmp_path: Path, written: str, value: float):
    """As DVC reads it. YAML 1.1, which PyYAML reads, takes most of these for text, and 010 for eight."""
    assert load_written(tmp_path, "lr", written).distill.lr == value
    (ours,) = reading_of(written)
    theirs = YAML(typ="safe").load(f"lr: {written}")["lr"]
    assert (ours, type(ours)) == (theirs, type(theirs))


def reading_of(*written: str) -> list[object]:
    return [yaml_1_2.parse(f"x: {text}")["x"] for text in written]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0o17", 15),
        ("1_000", 1000),
        ("0b11", 3),
        ("0x1F", 31),
        ("-12", -12),
        ("+3", 3),
        ("-.inf", -math.inf),
        ("-1e-4", -1e-4),
        ("0", 0),
        ("-0.0", 0.0),
    ],
)
def test_other_numbers_are_what_dvc_takes_them_for(written: str, value: float):
    assert reading_of(written) == [value]


@pytest.mark.parametrize("written", ["1:30", ".5e2", "e5", "1e", "1e5x", ".e5", "1.0.1", "0x", ".", "+.5.1"])
def test_what_is_no_number_to_dvc_is_text(written: str):
    assert reading_of(written) == [written]


@pytest.mark.parametrize("written", ['"2.0e-5"', "'0.1'"])
def test_a_number_in_quotes_is_answered_with_the_way_out(tmp_path: Path, written: str):
    with pytest.raises(ValueError, match=r"distill\.lr: expected float, .*; without quotes it is a number"):
        load_written(tmp_path, "lr", written)


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "1 e5", ".e5", "fast", "AUTO", ""])
def test_a_rate_that_is_no_number_may_only_be_auto(tmp_path: Path, text: str):
    (problem,) = problems(tmp_path, distill__lr=text)
    assert problem.startswith(f"distill.lr: unknown value {text!r}")
    assert "auto" in problem


def test_a_rate_may_be_auto(tmp_path: Path):
    assert load_with(tmp_path, distill__lr="auto").distill.lr == "auto"


def test_a_commit_that_yaml_reads_as_a_number_is_to_be_quoted(tmp_path: Path):
    with pytest.raises(ValueError, match=r"teacher\.revision: expected str, got .*; put it in quotes"):
        load_written(tmp_path, "revision", "12e4567")
    assert load_written(tmp_path, "revision", '"12e4567"').teacher.revision == "12e4567"
