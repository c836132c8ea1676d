"""`python -m pipeline.recommend` at its command line."""

import sys
from pathlib import Path

import pytest

from pipeline.recommend import __main__ as command
from tests.unit.recommend.made_answers import first, table

TEACHER = {"basic/reasoning": first(1000), "long/lines": first(900)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    where = tmp_path / "sweeps/laboratory"
    where.mkdir(parents=True)
    monkeypatch.setenv("COLUMNS", "100")
    points = {"W8": {}, "W4": {}, "W8A8KV8": {}, "W4A8KV8": {"long/lines": first(800)}}
    table(TEACHER, points).to_parquet(where / "answers.parquet")
    return where


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recommend", *arguments])
    command.main()


def test_the_table_the_line_to_paste_and_the_claims(folder: Path, monkeypatch, capsys):
    run(monkeypatch, "--claims")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Within 2 % of the teacher, 3,000 items, 4 points"
    assert lines[2:5] == [
        "basic: reasoning, 1,500 items",
        "  weights   W4, rtn is enough, loss 0.0 ± 0.0 %",
        "            none was measured",
    ]
    assert "scheme: W8A8KV8" in lines
    assert "KV4 hurts past some length, KV8 does not: not measured" in lines
    assert max(map(len, lines)) <= 100


def test_tasks_margin_and_kind_narrow_it(folder: Path, monkeypatch, capsys):
    run(monkeypatch, "--answers", str(folder), "--tasks", "basic, reasoning", "--margin", "0.05", "--kind", "weights")
    text = capsys.readouterr().out
    assert text.startswith("Within 5 %")
    assert "For basic, reasoning:\nscheme: W4\n" in text
    assert "lines" not in text.split("Enough:")[0]
    run(monkeypatch, "--tasks", "basic")
    assert "scheme: W4A8KV8\n" in capsys.readouterr().out, "what is lost of long does not count"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "lon"], "recommend: unknown task or group 'lon'; did you mean 'long'?"),
        (["--margin", "2"], "recommend: margin: 2 is not between 0 and 1; 0.02 is 2 %"),
        (["--answers", "nowhere"], "recommend: nowhere is neither a folder nor a file"),
        (["--answers", "sweeps"], "recommend: sweeps holds no answers.parquet; `make laboratory`"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, monkeypatch, arguments: list[str], message: str):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert str(ended.value).startswith(message)
    assert "\n" not in str(ended.value)


def test_without_a_laboratory_the_command_that_runs_it_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"recommend: there is no laboratory yet .*`make laboratory` runs it"):
        run(monkeypatch)
