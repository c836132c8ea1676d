import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.report import comparison, sweep_files, sweeps
from tests.unit.report.pictures import words_of

ROOT = Path(__file__).parents[3]


TEACHER, CODE = "bcc8", {"stages/distill.py": "0" * 32}


def results(folder: Path, teacher: str = TEACHER) -> Path:
    """A sweep's files: two policies, one that pandas takes for NaN, one with a seed that is not finished."""
    folder.mkdir(parents=True)
    rows = [("null", 0, 0.2), ("null", 1, 0.3), ("ov", 0, 0.25), ("ov", 1, None)]
    made = {"commit": "1" * 40, "code": sweep_files.digest(CODE), "teacher": teacher, "read": "ab"}
    points = pd.DataFrame(
        [{"experiment": f"s-{p}-{s}", **made, "setting": p, "freeze": p, "seed": s, "kl": kl} for p, s, kl in rows]
    )
    lines = [{"experiment": f"s-{p}-{s}", "step": i, "kl": 1.0 / i} for p, s, kl in rows if kl for i in (1, 2, 3)]
    return write(folder, points, pd.DataFrame(lines), ["freeze"], {"freeze": "null"})


def write(folder: Path, points: pd.DataFrame, curves: pd.DataFrame, knobs: list[str], baseline: dict[str, str]) -> Path:
    table = comparison.compare(points, knobs, "seed", ["kl"], baseline)
    for name, content in (("points", points), ("curves", curves), ("table", table)):
        content.to_csv(folder / f"{name}.csv", index=False)
    lineage = {"knobs": knobs, "seed": "seed", "metrics": ["kl"], "baseline": baseline}
    (folder / "lineage.json").write_text(json.dumps({**lineage, "code": {sweep_files.digest(CODE): CODE}}))
    return folder


def sections(folder: Path, teacher: str = "", curves: bool = True) -> list[dict[str, Any]]:
    return sweeps.sections(sweeps.results(folder, teacher)[0], folder, curves)


def test_each_sweep_with_results_is_shown_by_name(tmp_path: Path):
    results(tmp_path / "b")
    results(tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "a.yaml").write_text("name: a\n")
    page_sections = sections(tmp_path)
    assert [sweep["name"] for sweep in page_sections] == ["a", "b"]
    assert page_sections[0]["rows"][1:] == [["null", "2", "0.25 ± 0.071", "baseline"], ["ov", "1", "0.25", "+0.05 (1)"]]
    assert page_sections[0]["note"].startswith("3 of 4 points are finished")
    pictures, captions = zip(*page_sections[0]["pictures"], strict=True)
    assert all(picture.startswith("<svg") for picture in pictures)
    assert ["differences" in captions[0], "kl by step" in captions[1]] == [True, True]
    short = sections(tmp_path, curves=False)
    assert [sweep["pictures"] for sweep in short] == [sweep["pictures"][:1] for sweep in page_sections]


def test_an_edited_table_does_not_reach_the_page(tmp_path: Path):
    folder = results(tmp_path / "a")
    before = sections(tmp_path)
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    table.assign(mean=0.001).to_csv(folder / "table.csv", index=False)
    assert sections(tmp_path) == before


def test_sweeps_of_another_model_are_left_out_and_named(tmp_path: Path):
    results(tmp_path / "ours")
    results(tmp_path / "theirs", teacher="another")
    results(tmp_path / "old", teacher="unknown")
    own_sweeps, left_out = sweeps.results(tmp_path, TEACHER)
    assert [files.folder.name for files in own_sweeps] == ["ours"]
    assert left_out == ["old", "theirs"]


def test_points_of_code_that_has_changed_are_told(tmp_path: Path):
    folder = results(tmp_path / "a")
    (files,), _ = sweeps.results(tmp_path)
    assert "Commits of the points: 1111111111." in sweeps.origin(files, tmp_path)
    assert "code that has changed since: 3 of 3 points (stages/distill.py)" in sweeps.origin(files, tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/distill.py").write_text("x")
    own = {"stages/distill.py": hashlib.md5(b"x").hexdigest()}
    points = pd.read_csv(folder / "points.csv", keep_default_na=False)
    points["code"] = [sweep_files.digest(own), "unknown", sweep_files.digest(own), ""]
    points.to_csv(folder / "points.csv", index=False)
    lineage = json.loads((folder / "lineage.json").read_text())
    (folder / "lineage.json").write_text(json.dumps({**lineage, "code": {sweep_files.digest(own): own}}))
    (files,), _ = sweeps.results(tmp_path)
    told = sweeps.origin(files, tmp_path)
    assert "has changed" not in told
    assert "code that was not noted: 1 of 3 points" in told


def test_sizes_are_those_measured_on_the_same_text(tmp_path: Path):
    folder = results(tmp_path / "sizes")
    points = pd.read_csv(folder / "points.csv", keep_default_na=False).assign(weight_bytes=2e8)
    points.loc[0, "read"] = "cd"
    points.to_csv(folder / "points.csv", index=False)
    lineage = json.loads((folder / "lineage.json").read_text())
    (folder / "lineage.json").write_text(json.dumps({**lineage, "metrics": ["kl", "weight_bytes"]}))
    all_sweeps, _ = sweeps.results(tmp_path)
    assert sweeps.sizes(all_sweeps, "ab") == ([("sizes: null", 2e8, 0.3), ("sizes: ov", 2e8, 0.25)], 1)
    assert sweeps.sizes(all_sweeps, "unknown") == ([], 3)


def test_curves_have_a_picture_for_each_combination_of_the_knobs_that_the_baseline_leaves_open(tmp_path: Path):
    """Values that a reader of numbers would change: true, 1e-4 beside 0.5."""
    folder = results(tmp_path / "two")
    points, curves = (pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in ("points", "curves"))
    rates = ("1e-4", "0.5")
    wide = pd.concat([points.assign(experiment=points["experiment"] + f"-{lr}", lr=lr) for lr in rates])
    wide = wide.assign(kl=pd.to_numeric(wide["kl"]), flag="true")
    wide["setting"] = "freeze=" + wide["freeze"] + " lr=" + wide["lr"] + " flag=true"
    wide = wide[["experiment", *sweep_files.ORIGIN, "setting", "freeze", "lr", "flag", "seed", "kl"]]
    lines = pd.concat([curves.assign(experiment=curves["experiment"] + f"-{lr}") for lr in rates])
    baseline = {"flag": "true", "freeze": "null"}
    write(folder, wide, lines, ["freeze", "lr", "flag"], baseline)
    (section,) = sections(tmp_path)
    pictures = [(words_of(picture), caption) for picture, caption in section["pictures"]]
    assert [caption.partition(":")[0] for _, caption in pictures[1:]] == ["lr=1e-4", "lr=0.5"]
    assert {"freeze=ov flag=true", "lr=1e-4", "lr=0.5", "over all"} <= pictures[0][0]
    assert all({"freeze=null flag=true", "freeze=ov flag=true"} <= words for words, _ in pictures[1:])


def test_without_results_there_is_nothing(tmp_path: Path):
    (tmp_path / "ablation.yaml").write_text("name: ablation\n")
    assert sweeps.results(tmp_path) == ([], [])
    assert sweeps.results(tmp_path / "no such folder") == ([], [])


def test_all_that_are_no_results_are_named_with_the_way_out(tmp_path: Path):
    (results(tmp_path / "cut") / "lineage.json").unlink()
    (results(tmp_path / "torn") / "curves.csv").write_text("")
    (results(tmp_path / "other") / "points.csv").write_text("a,b\n1,2\n")
    (results(tmp_path / "odd") / "lineage.json").write_text("[]")
    results(tmp_path / "sound")
    with pytest.raises(ValueError, match="--only-report") as caught:
        sweeps.results(tmp_path)
    named = [name for name in ("cut", "torn", "other", "odd", "sound") if f"/{name}:" in str(caught.value)]
    assert named == ["cut", "torn", "other", "odd"]


def test_the_projects_own_sweeps_are_what_their_points_give():
    own_sweeps, _ = sweeps.results(ROOT / "sweeps")
    assert own_sweeps
    for files in own_sweeps:
        assert files.table.to_csv(index=False, lineterminator="\n") == (files.folder / "table.csv").read_text()
        assert files.markdown() == (files.folder / "table.md").read_text()
