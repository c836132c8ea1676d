from pathlib import Path

import pytest

from pipeline import progress


@pytest.fixture(autouse=True)
def scratch_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(progress, "SCRATCH", tmp_path / "scratch")
    return tmp_path / "scratch"


def test_the_same_inputs_find_their_own_work_again():
    first = progress.scratch("distill", {"seed": 0, "knobs": {"lr": 1e-4, "steps": 3}})
    (first / "work").write_text("half done")
    again = progress.scratch("distill", {"knobs": {"steps": 3, "lr": 1e-4}, "seed": 0})
    assert again == first
    assert (again / "work").read_text() == "half done"


def test_other_inputs_never_see_that_work_and_remove_it():
    first = progress.scratch("distill", {"seed": 0})
    (first / "work").write_text("half done")
    second = progress.scratch("distill", {"seed": 1})
    assert second != first
    assert not first.exists()
    assert list(second.iterdir()) == []


def test_one_stage_leaves_the_scratch_of_another_alone():
    kept = progress.scratch("synthesize", {"seed": 0})
    progress.scratch("distill", {"seed": 0})
    progress.clear("distill")
    assert kept.is_dir()


def test_clearing_removes_the_stage_and_may_be_repeated(scratch_elsewhere: Path):
    progress.scratch("distill", {"seed": 0})
    progress.clear("distill")
    progress.clear("distill")
    assert not (scratch_elsewhere / "distill").exists()


def test_the_bar_counts_from_where_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("CI", raising=False)
    with progress.bar("distill", 8, " step", initial=3) as bar:
        bar.update(5)
        assert bar.n == bar.total == 8
    assert "distill" in capsys.readouterr().err


def test_continuous_integration_sees_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("CI", "true")
    with progress.bar("distill", 8, " step") as bar:
        bar.update(8)
    assert capsys.readouterr().err == ""
