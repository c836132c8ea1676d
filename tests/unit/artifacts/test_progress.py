import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest
import torch

from pipeline.artifacts import environment, progress
from pipeline.artifacts.contract import LIBRARIES

ROOT = Path(__file__).parents[3]


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
    assert [file.name for file in second.iterdir()] == [progress.LOCK]


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
    for name in ("pipeline/artifacts/progress.py", "pipeline/quant/grid.py", "stages/distill.py", "stages/run.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / "README.md").write_text("words")
    monkeypatch.setattr(progress, "__file__", str(root / "pipeline/artifacts/progress.py"))
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
    (root / "pipeline/artifacts/progress.py").write_text("")
    grid = root / "pipeline/quant/grid.py"
    grid.write_text("# pipeline/artifacts/progress.py\n" + grid.read_text())


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
    monkeypatch.setattr(progress, "__file__", str(moved / "pipeline/artifacts/progress.py"))
    assert progress.scratch("distill", {"seed": 0}) == first


def test_the_library_and_the_stages_are_what_is_fingerprinted(monkeypatch: pytest.MonkeyPatch):
    """The true ones: each of these files is read."""
    read = []
    monkeypatch.setattr(progress, "sha256", lambda file: read.append(file) or "")
    progress.scratch("distill", {"seed": 0})
    root = Path(progress.__file__).parents[2]
    names = {file.relative_to(root).as_posix() for file in read}
    assert {
        "pipeline/artifacts/progress.py",
        "pipeline/quant/grid.py",
        "pipeline/knobs/params.py",
        "stages/run.py",
    } <= names


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("processor", "another processor"),
        ("_instructions", ["of another processor"]),
        ("_devices", ["a GPU"]),
    ],
)
def test_another_machine_never_sees_that_work(name: str, other: object, monkeypatch: pytest.MonkeyPatch):
    first = progress.scratch("synthesize", {"seed": 0})
    monkeypatch.setattr(environment, name, lambda *_: other)
    assert progress.scratch("synthesize", {"seed": 0}) != first
    assert not first.exists()


def test_another_number_of_threads_never_sees_that_work():
    """Sums come in another order, so a corpus of both would be the bytes of neither."""
    first, threads = progress.scratch("synthesize", {"seed": 0}), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        second = progress.scratch("synthesize", {"seed": 0})
    finally:
        torch.set_num_threads(threads)
    assert second != first
    assert progress.scratch("synthesize", {"seed": 0}) == first


@pytest.mark.parametrize("setting", ["ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY"])
def test_other_settings_of_the_libraries_never_see_that_work(setting: str, monkeypatch: pytest.MonkeyPatch):
    first = progress.scratch("calibrate", {"seed": 0})
    monkeypatch.setenv(setting, "AVX2")
    assert progress.scratch("calibrate", {"seed": 0}) != first


def test_of_several_processes_on_different_machines_all_find_one_folder(monkeypatch: pytest.MonkeyPatch):
    machines: list[int] = []

    def folder(rank: str, processor: str) -> Path:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(environment, "processor", lambda: processor)
        return progress.scratch("distill", {}, lambda machine: machines.append(machine) or 7)

    assert folder("0", "one") == folder("1", "two")
    assert len(set(machines)) == 2
    assert all(0 <= machine < 2**48 for machine in machines)


HOLD = """
import sys, time
from pathlib import Path
from pipeline.artifacts import progress
progress.SCRATCH = Path(sys.argv[1])
print(progress.scratch("distill", {"seed": int(sys.argv[2])}), flush=True)
time.sleep(60)
"""


@pytest.fixture
def running(scratch_elsewhere: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process at the work of seed 0, with its folder; it says so when it holds it."""
    command = [sys.executable, "-c", HOLD, str(scratch_elsewhere), "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    (folder / "work").touch()
    yield process, folder
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_folder_of_a_process_that_runs_is_left_alone_and_goes_when_it_is_gone(running):
    process, folder = running
    other = progress.scratch("distill", {"seed": 1})
    assert (folder / "work").exists()
    progress.clear("distill")
    assert not other.exists()
    assert (folder / "work").exists()
    process.kill()
    process.wait()
    progress.clear("distill")
    assert not progress.SCRATCH.joinpath("distill").exists()


def test_the_very_same_work_is_refused_while_another_process_is_at_it(running):
    process, folder = running
    with pytest.raises(ValueError, match=rf"process {process.pid} is at the very same work, .*; wait until it is done"):
        progress._hold(folder, 0.1)
    assert (folder / "work").exists()


def test_one_that_is_about_to_end_is_waited_for(running):
    process, folder = running
    Timer(0.3, process.kill).start()
    lock = progress._hold(folder, 20)
    os.close(lock)
    assert (folder / "work").exists()


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
