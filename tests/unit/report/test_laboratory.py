"""The section on the laboratory, from a sweep's files."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.artifacts import contract
from pipeline.report import laboratory, page
from pipeline.report.sweep_files import SweepFiles
from tests.unit.recommend.made_answers import first, table
from tests.unit.report.test_page import CONTENT

TEACHER = {"basic/reasoning": first(1000), "long/lines": first(900)}
POINTS = {"W8": {}, "W4": {"long/lines": first(800)}, "W8A8": {}, "W8KV4": {}, "W4A8KV8": {}}
NO_SIGNALS = pd.DataFrame(columns=["variant", "layer", "role", "name", "tensor", "statistic", "value"])


def sweep(folder: Path, sha256: str = "") -> SweepFiles:
    """A laboratory's files, as far as the section reads them."""
    folder.mkdir(parents=True)
    file = folder / "answers.parquet"
    table(TEACHER, POINTS).to_parquet(file)
    lineage = {"answers": sha256 or contract.sha256(file)}
    return SweepFiles(folder, pd.DataFrame(), pd.DataFrame(), lineage)


def test_the_section_has_the_same_table_as_the_command_a_picture_and_the_claims(tmp_path: Path):
    shown = laboratory.section([sweep(tmp_path / "laboratory")], NO_SIGNALS, 0.02)
    assert shown is not None
    assert shown["absent"] == ""
    weights = {row[1]: row[3] for row in shown["rows"] if row[2] == "weights"}
    assert (weights["reasoning"], weights["lines"]) == ("W4, rtn", "W8, rtn")
    assert shown["chosen"][0] == "scheme: W4A8KV8"
    assert shown["plot"].count("the margin") >= 1
    assert all(f">{name}<" in shown["plot"] for name in ("weights", "inputs", "KV cache", "basic", "long"))
    assert len(shown["claims"]) == 8
    text = page.render(**{**CONTENT, "laboratory": shown})
    assert "<h2>Laboratory</h2>" in text
    assert "scheme: W4A8KV8" in text
    assert "<svg" in text[text.index("<h2>Laboratory</h2>") : text.index("<h2>Signals</h2>")]


def test_the_whole_one_is_shown_before_the_quick_one_and_other_sweeps_are_none(tmp_path: Path):
    quick = sweep(tmp_path / "laboratory-quick")
    whole = sweep(tmp_path / "laboratory")
    assert laboratory.section([sweep(tmp_path / "sizes")], NO_SIGNALS, 0.02) is None
    for sweeps, name in (([quick], "laboratory-quick"), ([quick, whole], "laboratory")):
        shown = laboratory.section(sweeps, NO_SIGNALS, 0.02)
        assert shown is not None
        assert shown["name"] == name


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), "is not here, as Git does not track it; `python -m pipeline.flow sweep"),
        (lambda file: file.write_bytes(file.read_bytes() + b" "), "is not what the sweep wrote"),
    ],
)
def test_answers_that_are_not_there_or_not_the_sweeps_are_told_of(tmp_path: Path, spoil, said: str):
    files = sweep(tmp_path / "laboratory")
    spoil(tmp_path / "laboratory/answers.parquet")
    shown = laboratory.section([files], NO_SIGNALS, 0.02)
    assert shown is not None
    assert said in shown["absent"]
    assert "The sweep laboratory was run, but" in page.render(**{**CONTENT, "laboratory": shown})
