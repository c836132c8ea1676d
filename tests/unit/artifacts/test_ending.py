"""A stage ends when it is told to, wherever it is, and with what started it; started by hand, it outlives that."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import psutil
import pytest

from tests.integration.stopping import alive, heed_signals

ROOT = Path(__file__).parents[3]
STAGE = """
import os, sys, time
from pathlib import Path
print(os.getpid(), flush=True)
if "busy" in sys.argv:
    sum(range(10**12))  # one operation, during which no handler of Python runs
time.sleep(60)
"""
DVC = """
import os, subprocess
subprocess.run(["/bin/sh", "-c", os.environ["COMMAND"]], env={**os.environ, "DVC_STAGE": "slow"})
"""  # it starts a shell, as the true one does, which the tests of the integration have


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose stage `slow` says its number and takes a minute; the true package of stages lies around it."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stages/slow.py").write_text(STAGE)
    (tmp_path / "dvc.py").write_text(DVC)
    (tmp_path / "Makefile").write_text("repro:\n\t@$(PYTHON) dvc.py\n")
    return tmp_path


def start(command: list[str], project: Path, extra: dict[str, str], ignored: Collection[int] = ()):
    """A command, when the stage that it starts is at work, and that stage's number."""
    started = subprocess.Popen(
        command,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **extra},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: heed_signals(ignored),
    )
    assert started.stdout is not None
    return started, int(started.stdout.readline())


def gone(process: int, seconds: float = 30) -> bool:
    """Whether a process ends within so many seconds: more than it takes, in case the machine is busy."""
    deadline = time.monotonic() + seconds
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    ended = not alive(process)
    if not ended:
        os.kill(process, signal.SIGKILL)
    return ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_midst_of_an_operation_it_ends(project: Path, number: signal.Signals):
    stage, process = start([sys.executable, "-m", "stages.slow", "busy"], project, {})
    os.kill(process, number)
    assert gone(process)
    assert stage.wait(10) == -number


def test_sigint_ends_it_in_the_background_of_a_script_and_nohup_keeps_it(project: Path):
    stage, process = start([sys.executable, "-m", "stages.slow"], project, {}, [signal.SIGINT, signal.SIGHUP])
    os.kill(process, signal.SIGHUP)
    time.sleep(0.3)
    assert stage.poll() is None
    os.kill(process, signal.SIGINT)
    assert stage.wait(30) == -signal.SIGINT


SHELLS = {
    "none": "exec $PYTHON -m stages.slow",
    "waits": "$PYTHON -m stages.slow; true",
    "two wait": "sh -c '$PYTHON -m stages.slow; true'; true",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_it_ends_with_dvc_whatever_shells_are_between(project: Path, shell: str):
    dvc, process = start([sys.executable, "dvc.py"], project, {"COMMAND": SHELLS[shell]})
    time.sleep(0.5)  # it sees who is above it
    dvc.kill()
    dvc.wait()
    assert gone(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_make(project: Path, number: signal.Signals):
    """Which passes on SIGTERM alone, to what it has started."""
    make, process = start(["make", "repro"], project, {"COMMAND": SHELLS["none"]})
    time.sleep(0.5)
    make.send_signal(number)
    assert gone(process)
    assert make.wait(10) == -number


def test_by_hand_it_outlives_the_shell_that_started_it(project: Path):
    shell, process = start(["/bin/sh", "-c", SHELLS["waits"]], project, {"DVC_STAGE": ""})
    shell.kill()
    shell.wait()
    time.sleep(0.6)
    assert psutil.pid_exists(process)
    os.kill(process, signal.SIGKILL)


def test_whoever_imports_the_stages_keeps_its_own_handler():
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); import stages.run; "
        "print(signal.getsignal(signal.SIGINT) is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
