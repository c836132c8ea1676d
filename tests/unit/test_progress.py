from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.artifacts import LIBRARIES


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


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_never_sees_that_work(library: str, monkeypatch: pytest.MonkeyPatch):
    first = progress.scratch("distill", {"seed": 0})
    true = progress.version
    monkeypatch.setattr(progress, "version", lambda name: "0.0.1" if name == library else true(name))
    second = progress.scratch("distill", {"seed": 0})
    assert second != first
    assert not first.exists()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library and stages of a few lines, which `progress` takes for its own."""
    root = tmp_path / "checkout"
    for name in ("pipeline/progress.py", "pipeline/quant/grid.py", "stages/distill.py", "stages/run.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / "README.md").write_text("words")
    monkeypatch.setattr(progress, "__file__", str(root / "pipeline" / "progress.py"))
    return root


def change(root: Path) -> None:
    (root / "pipeline/quant/grid.py").write_text("# another\n")


def change_a_stage(root: Path) -> None:
    (root / "stages/distill.py").write_text("# another\n")


def add(root: Path) -> None:
    (root / "pipeline/quant/new.py").write_text("")


def remove(root: Path) -> None:
    (root / "stages/run.py").unlink()


def rename(root: Path) -> None:
    (root / "pipeline/quant/grid.py").rename(root / "pipeline/quant/grids.py")


def move_a_line(root: Path) -> None:
    """From the end of one file to the start of the next."""
    (root / "pipeline/progress.py").write_text("")
    grid = root / "pipeline/quant/grid.py"
    grid.write_text("# pipeline/progress.py\n" + grid.read_text())


@pytest.mark.parametrize("edit", [change, change_a_stage, add, remove, rename, move_a_line])
def test_other_code_never_sees_that_work(checkout: Path, edit: Callable[[Path], None]):
    first = progress.scratch("distill", {"seed": 0})
    edit(checkout)
    assert progress.scratch("distill", {"seed": 0}) != first
    assert not first.exists()


def test_what_is_no_code_changes_nothing(checkout: Path):
    first = progress.scratch("distill", {"seed": 0})
    (checkout / "README.md").write_text("other words")
    (checkout / "pipeline/notes.txt").write_text("notes")
    assert progress.scratch("distill", {"seed": 0}) == first


def test_the_fingerprint_does_not_hold_where_the_code_lies(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    first = progress.scratch("distill", {"seed": 0})
    moved = checkout.rename(checkout.with_name("elsewhere"))
    monkeypatch.setattr(progress, "__file__", str(moved / "pipeline" / "progress.py"))
    assert progress.scratch("distill", {"seed": 0}) == first


def test_the_library_and_the_stages_are_what_is_fingerprinted(monkeypatch: pytest.MonkeyPatch):
    """The true ones: each of these files is read."""
    read = []
    monkeypatch.setattr(progress, "sha256", lambda file: read.append(file) or "")
    progress.scratch("distill", {"seed": 0})
    root = Path(progress.__file__).parents[1]
    names = {file.relative_to(root).as_posix() for file in read}
    assert {"pipeline/progress.py", "pipeline/quant/grid.py", "pipeline/params.py", "stages/run.py"} <= names


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
