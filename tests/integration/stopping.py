"""Processes that a test stops: waiting for the moment, stopping them, and seeing that none outlives it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import psutil
import pytest


def heed_signals(ignored: Collection[int] = ()) -> None:
    """For what a test starts: let SIGINT and SIGHUP end it, but for those that are to be ignored.

    Tests that run in the background ignore SIGINT, those under nohup SIGHUP, and what they start would, too.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(moment: Callable[[], bool], process: subprocess.Popen, seconds: int, log: Path | None = None) -> None:
    """Until the moment has come; it must come while the process runs, and in so many seconds."""
    deadline = time.monotonic() + seconds
    while not moment():
        ended, late = process.poll() is not None, time.monotonic() > deadline
        if ended or late:
            said = f": {log.read_text()}" if log else ""
            pytest.fail(f"{process.args} {'ended' if ended else 'ran on'} before the moment to stop it{said}")
        time.sleep(0.01)


def stop_flow(
    command: list[str],
    project: Path,
    environment: dict[str, str],
    log: Path,
    moment: Callable[[], bool],
    number: signal.Signals = signal.SIGINT,
    to_group: bool = True,
    *,
    processes: int,
) -> None:
    """Start a flow, signal it (or its group) at the moment, and prove that none of its processes outlives it.

    There must be so many of them then, at least. The flow must end with the shell's exit code for the signal and say
    no traceback; what it says goes to the log.
    """
    with log.open("w") as output:
        flow = subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=heed_signals,
        )
    started: list[psutil.Process] = []
    try:
        wait_for(moment, flow, 240, log)
        started = psutil.Process(flow.pid).children(recursive=True)
        assert len(started) >= processes, f"fewer processes than there should be: {started}"
        (os.killpg if to_group else os.kill)(flow.pid, number)
        code = flow.wait(timeout=120)
        assert code == 128 + number, f"exit code {code}: {log.read_text()}"
    finally:
        with suppress(psutil.NoSuchProcess):
            started += psutil.Process(flow.pid).children(recursive=True)
        flow.kill()
        left = [process for process in started if alive(process.pid)]
        for process in left:
            process.kill()
    assert left == [], f"left running: {left}"
    assert "Traceback" not in log.read_text(), log.read_text()
