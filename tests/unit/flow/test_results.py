"""A sweep's files: the same bytes for the same results, and read back as results."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.flow import results
from pipeline.flow.definition import Sweep
from pipeline.flow.plan import Run
from pipeline.flow.points import Point
from pipeline.flow.results import Result
from pipeline.report import sweep_files
from pipeline.report.sweep_files import Origin

RUNS = [
    Run(Point({"distill.freeze": freeze}, seed, {}), f"s-{freeze}-{seed}-0123abcd", {})
    for freeze in ("none", "ov")
    for seed in (0, 1)
]


def sweep(folder: Path, **changes: Any) -> Sweep:
    fields: dict[str, Any] = {
        "file": folder / "s.yaml",
        "name": "s",
        "points": tuple(run.point for run in RUNS),
        "seed_knob": "distill.seed",
        "baseline": {"distill.freeze": "none"},
        "target": "evaluate@student",
        "metrics": ["perplexity", "kl"],
        "scores": "data/scores/student.json",
        "curves": "data/student/log.csv",
        "columns": ["kl"],
    }
    return Sweep(**{**fields, **changes})


# Names that a reader of numbers would change.
ORIGIN = Origin("1" * 40, {"stages/distill.py": "a" * 32}, "12e4", "1234567890123456")


def result(kl: float) -> Result:
    curves = pd.DataFrame({"step": [1, 2], "kl": [kl + 0.1, kl + 1 / 3], "kl.o": [0.5, 0.25]})
    return Result({"perplexity": 10 + kl, "perplexity.stderr": 0.1, "kl": kl}, curves, ORIGIN)


FINISHED = {run.name: result(0.1 + i / 7) for i, run in enumerate(RUNS[:3])}


def test_every_point_has_a_row_and_every_finished_one_its_curves(tmp_path: Path):
    results.write(sweep(tmp_path), RUNS, FINISHED)
    points, curves, table = (pd.read_csv(tmp_path / "s" / f"{name}.csv") for name in ("points", "curves", "table"))
    assert [*points] == [
        "experiment", "commit", "code", "teacher", "read", "setting",
        "distill.freeze", "distill.seed", "perplexity", "perplexity.stderr", "kl",
    ]  # fmt: skip
    assert [*points["experiment"]] == [run.name for run in RUNS]
    assert [*points["distill.seed"]] == [0, 1, 0, 1]
    assert points["kl"].isna().tolist() == [False, False, False, True]
    assert [*curves] == ["experiment", "step", "kl", "kl.o"]
    assert [*curves["experiment"].unique()] == [*FINISHED]
    assert [*table["metric"]] == ["perplexity", "kl"] * 2
    assert "3 of 4 points are finished" in (tmp_path / "s/table.md").read_text()


def test_what_was_written_reads_back_and_writes_the_same_bytes(tmp_path: Path):
    results.write(sweep(tmp_path), RUNS, FINISHED)
    before = {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()}
    known = results.recorded(sweep(tmp_path))
    assert {*known} == {*FINISHED}
    for name, original in FINISHED.items():
        assert known[name].scores == original.scores
        assert known[name].origin == ORIGIN
        pd.testing.assert_frame_equal(known[name].curves, original.curves)
    results.write(sweep(tmp_path), RUNS, known)
    assert {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()} == before
    assert {*before} == {"points.csv", "curves.csv", "table.csv", "table.md", "lineage.json"}


def test_the_table_follows_from_the_points_as_they_lie_there(tmp_path: Path):
    """To the byte, with settings that a reader of numbers would change."""
    results.write(sweep(tmp_path, baseline={"distill.freeze": "none"}), RUNS, FINISHED)
    files = sweep_files.load(tmp_path / "s")
    assert files.table.to_csv(index=False, lineterminator="\n") == (tmp_path / "s/table.csv").read_text()
    assert files.markdown() == (tmp_path / "s/table.md").read_text()
    assert {*files.points["commit"].dropna()} == {"1" * 40}
    assert files.code({"code": sweep_files.digest(ORIGIN.code)}) == ORIGIN.code


def test_results_of_before_there_was_a_lineage_count_and_are_of_unknown_origin(tmp_path: Path):
    results.write(sweep(tmp_path), RUNS, FINISHED)
    file = tmp_path / "s/points.csv"
    pd.read_csv(file, dtype=str).drop(columns=[*sweep_files.ORIGIN]).to_csv(file, index=False)
    (tmp_path / "s/lineage.json").unlink()
    known = results.recorded(sweep(tmp_path))
    assert {*known} == {*FINISHED}
    assert {recorded.origin.commit for recorded in known.values()} == {"unknown"}
    results.write(sweep(tmp_path), RUNS, known)
    assert {*sweep_files.load(tmp_path / "s").finished["teacher"]} == {"unknown"}


def test_a_sweep_that_trains_nothing_has_no_curves(tmp_path: Path):
    plain = sweep(tmp_path, curves="", columns=[])
    nothing = pd.DataFrame({"step": pd.Series(dtype="int64")})
    results.write(plain, RUNS, {name: Result(original.scores, nothing, ORIGIN) for name, original in FINISHED.items()})
    known = results.recorded(plain)
    assert {name: recorded.scores for name, recorded in known.items()} == {
        name: original.scores for name, original in FINISHED.items()
    }
    results.write(plain, RUNS, known)
    assert (tmp_path / "s/curves.csv").read_text() == "experiment,step\n"


def test_what_lacks_something_that_is_asked_for_now_does_not_count(tmp_path: Path):
    results.write(sweep(tmp_path), RUNS, FINISHED)
    assert results.recorded(sweep(tmp_path, metrics=["kl", "top1"])) == {}
    assert results.recorded(sweep(tmp_path, columns=["gradient_norm"])) == {}
    assert results.recorded(sweep(tmp_path / "elsewhere")) == {}


def test_damaged_files_are_named_with_the_way_out(tmp_path: Path):
    results.write(sweep(tmp_path), RUNS, FINISHED)
    file = tmp_path / "s/points.csv"
    file.write_text(file.read_text().replace("experiment", "name"))
    with pytest.raises(ValueError, match=r"points\.csv or curves\.csv is damaged .*git restore"):
        results.recorded(sweep(tmp_path))


class Files:
    """What DVC would read at a commit."""

    def __init__(self, scores: str, curves: str) -> None:
        self.texts = {"data/scores/student.json": scores, "data/student/log.csv": curves}
        self.bytes_ = dict[str, bytes]()

    def read_bytes(self, path: str) -> bytes:
        return self.bytes_[path]

    def read_text(self, path: str) -> str:
        if path not in self.texts:
            raise FileNotFoundError(path)
        return self.texts[path]


SCORES = '{"perplexity": 12.5, "perplexity.stderr": 0.5, "kl": 0.25, "top1": 0.5, "bad": NaN}'
CURVES = "step,kl,gradient_norm,gradient_norm.o,lr\n1,0.30000000000000004,3,1,0.1\n2,0.2,4,2,0.1\n"


def test_a_metric_may_be_the_end_of_a_curve_and_then_no_scores_are_read(monkeypatch: pytest.MonkeyPatch):
    rows = "".join(f"{step},{kl}\n" for step, kl in enumerate([9, 8, 7, 6, 5, 4, 2, 1], 1))
    long = read(monkeypatch, "no JSON", f"step,kl\n{rows}", metrics=["end.kl"])
    assert long.scores == {"end.kl": 1.5, "end.kl.stderr": 0.5}
    short = read(monkeypatch, '{"kl": 0.5}', "step,kl\n1,3.0\n2,2.0\n", metrics=["kl", "end.kl"])
    assert short.scores == {"kl": 0.5, "end.kl": 2.0}
    with pytest.raises(ValueError, match=r"has no end\.ce; `metrics` may be: .*end\.kl"):
        read(monkeypatch, "", f"step,kl\n{rows}", metrics=["end.ce"])


def read(monkeypatch: pytest.MonkeyPatch, scores: str, curves: str, **changes: Any) -> Result:
    monkeypatch.setattr(results, "DVCFileSystem", lambda root, rev: Files(scores, curves))
    return results.read(Path(), "0123", sweep(Path(), **changes))


def test_an_experiments_result_has_what_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    outcome = read(monkeypatch, SCORES, CURVES, columns=["kl", "gradient_norm"])
    assert outcome.scores == {"perplexity": 12.5, "perplexity.stderr": 0.5, "kl": 0.25}
    assert [*outcome.curves] == ["step", "kl", "gradient_norm", "gradient_norm.o"]
    assert [*outcome.curves["kl"]] == [0.30000000000000004, 0.2]


def test_long_curves_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch):
    text = "step,kl\n" + "".join(f"{step},0.5\n" for step in range(1, 1001))
    steps = read(monkeypatch, SCORES, text).curves["step"]
    assert len(steps) <= results.CURVE_ROWS
    assert {*steps.diff().dropna()} == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["klx", "kl", "ppl"]}, r"student.json has no klx, ppl; `metrics` may be: perplexity, kl, top1"),
        ({"columns": ["loss"]}, r"log.csv has no column loss; `columns` may be: step, kl, gradient_norm"),
        ({"metrics": ["bad"]}, "bad: not a finite number"),
    ],
)
def test_what_a_result_lacks_is_named(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        read(monkeypatch, SCORES, CURVES, **changes)


LOCK = """
schema: '2.0'
stages:
  distill:
    cmd: d
    deps: [{path: data/teacher, md5: 1.dir}, {path: stages/distill.py, md5: a1}, {path: pipeline/models.py, md5: b2}]
    outs: [{path: data/student, md5: 2.dir}]
  evaluate@student:
    cmd: e
    deps: [{path: data/student, md5: 2.dir}, {path: data/benchmarks, md5: 3.dir}, {path: stages/evaluate.py, md5: c3}]
    outs: [{path: data/scores/student.json, md5: d4}]
  teacher:
    cmd: t
    deps: [{path: stages/teacher.py, md5: e5}]
    outs: [{path: data/teacher, md5: 1.dir}]
  report:
    cmd: r
    deps: [{path: data/scores/student.json, md5: d4}, {path: stages/report.py, md5: f6}]
    outs: [{path: data/report, md5: 4.dir}]
"""


def test_a_result_knows_its_commit_the_code_that_it_needs_its_model_and_its_texts(monkeypatch: pytest.MonkeyPatch):
    files = Files('{"kl": 0.25, "read": {"text": "ab"}}', CURVES)
    files.texts["dvc.lock"] = LOCK
    files.texts["data/teacher/manifest.json"] = '{"facts": {"sha256": "bcc8", "file_sha256": "x"}, "files": {}}'
    monkeypatch.setattr(results, "DVCFileSystem", lambda root, rev: files)
    outcome = results.read(Path(), "0123", sweep(Path(), metrics=["kl"]))
    assert outcome.scores == {"kl": 0.25}
    assert outcome.origin == Origin(
        "0123",
        {
            "pipeline/models.py": "b2",
            "stages/distill.py": "a1",
            "stages/evaluate.py": "c3",
            "stages/teacher.py": "e5",
        },
        "bcc8",
        sweep_files.digest({"text": "ab"}),
    )


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"facts": {"package": "p==1", "sha256": "aa", "file_sha256": "bb"}}, "aa"),
        ({"facts": {"file": "m.gguf", "file_sha256": "bb"}}, "bb"),
        ({"facts": {"repo": "o/n", "revision": "main", "commit": "c0"}}, "o/n@c0"),
        (
            {"facts": {"m.safetensors": "dd"}, "files": {"model.safetensors": "ee"}},
            sweep_files.digest({"m.safetensors": "dd"}),
        ),
        ({"facts": {}, "files": {"model.safetensors": "ee"}}, sweep_files.digest({"model.safetensors": "ee"})),
        ({}, "unknown"),
    ],
)
def test_a_model_is_known_by_the_file_or_commit_that_it_came_in(manifest: dict[str, Any], expected: str):
    assert sweep_files.teacher_of(manifest) == expected
