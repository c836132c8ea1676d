from pathlib import Path

import pandas as pd
import pytest

from pipeline.report import comparison, sweeps
from tests.unit.report.pictures import words_of


def results(folder: Path) -> Path:
    """A sweep's files: two policies, one that pandas takes for NaN, one with a seed that is not finished."""
    folder.mkdir(parents=True)
    rows = [("null", 0, 0.2), ("null", 1, 0.3), ("ov", 0, 0.25), ("ov", 1, None)]
    points = pd.DataFrame(
        [{"experiment": f"s-{p}-{s}", "setting": p, "freeze": p, "seed": s, "kl": kl} for p, s, kl in rows]
    )
    lines = [{"experiment": f"s-{p}-{s}", "step": i, "kl": 1.0 / i} for p, s, kl in rows if kl for i in (1, 2, 3)]
    table = comparison.compare(points, ["freeze"], "seed", ["kl"], {"freeze": "null"})
    for name, content in (("points", points), ("curves", pd.DataFrame(lines)), ("table", table)):
        content.to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_each_sweep_with_results_is_shown_by_name(tmp_path: Path):
    results(tmp_path / "b")
    results(tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "a.yaml").write_text("name: a\n")
    found = sweeps.sections(tmp_path)
    assert [sweep["name"] for sweep in found] == ["a", "b"]
    assert found[0]["rows"][1:] == [["null", "2", "0.25 ± 0.071", "baseline"], ["ov", "1", "0.25", "+0.05 (1)"]]
    assert found[0]["note"].startswith("3 of 4 points are finished")
    pictures, captions = zip(*found[0]["pictures"], strict=True)
    assert all(picture.startswith("<svg") for picture in pictures)
    assert ["differences" in captions[0], "kl by step" in captions[1]] == [True, True]
    short = sweeps.sections(tmp_path, curves=False)
    assert [sweep["pictures"] for sweep in short] == [sweep["pictures"][:1] for sweep in found]


def test_curves_have_a_picture_for_each_combination_of_the_knobs_that_the_baseline_leaves_open(tmp_path: Path):
    """Values that a reader of numbers would change: true, 1e-4 beside 0.5."""
    folder = results(tmp_path / "two")
    points, curves = (pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in ("points", "curves"))
    rates = ("1e-4", "0.5")
    wide = pd.concat([points.assign(experiment=points["experiment"] + f"-{lr}", lr=lr) for lr in rates])
    wide = wide.assign(kl=pd.to_numeric(wide["kl"]), flag="true")
    wide["setting"] = "freeze=" + wide["freeze"] + " lr=" + wide["lr"] + " flag=true"
    wide = wide[["experiment", "setting", "freeze", "lr", "flag", "seed", "kl"]]
    lines = pd.concat([curves.assign(experiment=curves["experiment"] + f"-{lr}") for lr in rates])
    baseline = {"flag": "true", "freeze": "null"}
    table = comparison.compare(wide, ["freeze", "lr", "flag"], "seed", ["kl"], baseline)
    for name, content in (("points", wide), ("curves", lines), ("table", table)):
        content.to_csv(folder / f"{name}.csv", index=False)
    (found,) = sweeps.sections(tmp_path)
    pictures = [(words_of(picture), caption) for picture, caption in found["pictures"]]
    assert [caption.partition(":")[0] for _, caption in pictures[1:]] == ["lr=1e-4", "lr=0.5"]
    assert {"freeze=ov flag=true", "lr=1e-4", "lr=0.5", "over all"} <= pictures[0][0]
    assert all({"freeze=null flag=true", "freeze=ov flag=true"} <= words for words, _ in pictures[1:])


def test_without_results_there_is_nothing(tmp_path: Path):
    (tmp_path / "ablation.yaml").write_text("name: ablation\n")
    assert sweeps.sections(tmp_path) == []
    assert sweeps.sections(tmp_path / "no such folder") == []


def test_all_that_are_no_results_are_named_with_the_way_out(tmp_path: Path):
    (results(tmp_path / "cut") / "points.csv").unlink()
    (results(tmp_path / "torn") / "curves.csv").write_text("")
    (results(tmp_path / "other") / "table.csv").write_text("a,b\n1,2\n")
    results(tmp_path / "sound")
    with pytest.raises(ValueError, match="--only-report") as caught:
        sweeps.sections(tmp_path)
    assert [name for name in ("cut", "torn", "other", "sound") if f"/{name}:" in str(caught.value)] == [
        "cut",
        "torn",
        "other",
    ]
