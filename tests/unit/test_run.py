"""The frame of every stage: one line for what a user or a machine did wrong, no notes of the libraries' own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tqdm
from safetensors import SafetensorError

from pipeline.artifacts import environment
from pipeline.artifacts.contract import INT4, writing
from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.export.formats import export, load_exported
from pipeline.knobs.scheme import from_short
from stages import run
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("scheme: no such thing"), "export: scheme: no such thing"),
        (OSError(28, "No space left on device", "data/x"), "export: No space left on device: data/x"),
        (OSError(28, "No space left on device"), "export: No space left on device"),
        (OSError("unlike any other"), "export: unlike any other"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "export: Error while serializing: I/O error: No space left on device (os error 28)",
        ),
    ],
)
def test_what_is_not_our_fault_is_one_line(error: Exception, line: str):
    with pytest.raises(SystemExit) as caught:
        run.main("export", raising(error))
    assert caught.value.code == line
    assert not run.USAGE.exists()


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), SafetensorError("dtype mismatch")])
def test_what_is_our_fault_keeps_its_traceback(error: Exception):
    with pytest.raises(type(error)):
        run.main("export", raising(error))


FULL_DISK = """
import resource
from pathlib import Path
import torch
from safetensors.torch import save_file
from pipeline.artifacts import contract
from stages import run

resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

def work():
    with contract.writing(Path("out"), contract.CORPUS) as draft:
        save_file({"tokens": torch.zeros(100000)}, draft.path / "corpus.safetensors")

run.main("synthesize", work)
"""


def test_a_disk_that_is_full_when_the_weights_are_written_leaves_one_line_and_no_artifact(tmp_path: Path):
    """A limit on the size of files stands for the disk: the library meets the system's own error."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "synthesize: Error while serializing: I/O error: File too large (os error 27)\n"
    assert list(tmp_path.iterdir()) == []


def test_time_and_memory_are_noted_under_the_variants_name():
    run.main("export", lambda: "ptq")
    run.main("teacher", lambda: None)
    assert sorted(file.name for file in run.USAGE.iterdir()) == ["export@ptq.json", "teacher.json"]
    usage = json.loads((run.USAGE / "teacher.json").read_text())
    assert usage["seconds"] >= 0
    assert 0.05 < usage["peak_gib"] < 500


def test_a_stage_that_was_refused_leaves_nothing_to_the_next_run_in_the_same_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stages.export"])
    for name in ("versions.yaml", "dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, name)

    def refused() -> None:
        run.begin("export")
        raise ValueError("no")

    with pytest.raises(SystemExit, match="no"):
        run.main("export", refused)
    Path("params.yaml").unlink()
    run.main("export", lambda: None)


def test_a_note_that_cannot_be_written_is_one_line_too(tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SystemExit, match="export: Not a directory: runs/usage"):
        run.main("export", lambda: None)


def test_the_libraries_bars_stay_out_of_the_output_and_ours_do_not(
    tokens, valid, teacher_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    before = tqdm.tqdm.__init__
    quantized = calibrate(
        tiny.llama(), tokens, valid, from_short("W4A16"), Options("rtn", {}), None, lambda: None
    ).model
    for name in ("compressed-tensors", "dequantized"):
        with run.quiet_libraries(), writing(tmp_path / name, INT4) as draft:
            draft.facts = export(quantized, teacher_folder, name, draft.path)
        with run.quiet_libraries():
            load_exported(tmp_path / name, "bfloat16")(input_ids=tokens)
    assert capfd.readouterr() == ("", "")
    with run.quiet_libraries():
        list(tqdm.tqdm(range(3), desc="ours", disable=False))
    assert "ours" in capfd.readouterr().err
    assert tqdm.tqdm.__init__ == before


@pytest.mark.parametrize(("library", "shown"), [("safetensors", True), ("torch", True), ("pipeline.corpus", False)])
def test_a_library_that_is_not_installed_is_one_line_and_a_module_of_ours_is_not(library: str, shown: bool):
    """None in sys.modules stands for it."""
    start = "runpy.run_module('stages.synthesize', run_name='__main__')"
    code = f"import runpy, sys; sys.modules[{library!r}] = None; {start}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (done.stderr == f"{library} is not installed; `{environment.INSTALL}`\n") == shown
    assert ("Traceback" in done.stderr) != shown
