"""`dvc repro` and `make repro` stopped in every way: the stage ends, the next run goes on, to the same bytes."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import change_params, checkout, environment, run
from tests.integration.stopping import alive, heed_signals, wait_for

DVC = ["dvc", "repro", "synthesize"]
MAKE = ["make", "repro"]
WAYS = [
    (DVC, signal.SIGINT, "all", "Ctrl-C"),
    (DVC, signal.SIGHUP, "all", "the terminal is closed"),
    (DVC, signal.SIGTERM, "first", "kill"),
    (DVC, signal.SIGKILL, "first", "kill -9"),
    (MAKE, signal.SIGINT, "all", "Ctrl-C"),
    (MAKE, signal.SIGTERM, "first", "kill"),
    (MAKE, signal.SIGINT, "first", "kill -INT"),
]


@pytest.fixture
def project(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A checkout with a teacher, whose corpus is to be made in 100 batches; the environment counts as made."""
    where = checkout(tmp_path / "project", tiny_teacher)
    change_params(where, {"synthesize": {"sequences": 600}})
    (where / ".venv").mkdir()
    (where / ".venv/ready").touch()
    assert "teacher: the whole run: about " in run(["dvc", "repro", "teacher"], where).stdout
    return where


def parts(where: Path) -> int:
    return len([*where.glob("runs/scratch/synthesize/*/*.safetensors")])


def stop(where: Path, command: list[str], number: signal.Signals, to: str, log: Path) -> None:
    """Start it, stop it when another batch is written, and see that nothing of it lives on."""
    before = parts(where)
    with log.open("w") as output:
        started = subprocess.Popen(
            command,
            cwd=where,
            env=environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=heed_signals,
        )
    try:
        wait_for(lambda: parts(where) > before, started, 400, log)
        below = psutil.Process(started.pid).children(recursive=True)
        assert any("stages.synthesize" in process.cmdline() for process in below)
        (os.killpg if to == "all" else os.kill)(started.pid, number)
        started.wait(timeout=60)
        psutil.wait_procs(below, timeout=30)
        left = [process for process in below if alive(process.pid)]
        assert left == [], f"left running: {left}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert "Traceback" not in log.read_text()


def test_however_it_is_stopped_the_stage_ends_and_the_next_run_goes_on(project: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(project, tmp_path / "whole", symlinks=True)
    run(DVC, whole)
    for command, number, to, _what in WAYS:
        stop(project, command, number, to, tmp_path / "log")
        assert not (project / "data/corpus").exists()
    done = run(DVC, project)
    assert "synthesize: going on after" in done.stdout
    for file in (whole / "data/corpus").iterdir():
        assert (project / "data/corpus" / file.name).read_bytes() == file.read_bytes(), file.name
    assert not (project / "runs/scratch/synthesize").exists()
