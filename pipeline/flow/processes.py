"""Commands that run in process groups of their own, which are gone when the call returns or raises."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread

DVC = [sys.executable, "-m", "dvc"]
POLL = 0.1  # seconds
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
GUARD = f"read -r _; kill -TERM -$1; sleep {GRACE}; kill -KILL -$1"


class StageError(RuntimeError):
    """DVC could not run what was asked of it, or not find it; the message is for the user."""


def run(
    what: str,
    command: Sequence[str],
    say: Callable[[str], None],
    *,
    tail: int,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    cancelled: Event | None = None,
) -> None:
    """Run a command to its end, and end whatever it leaves running, also if this process is killed meanwhile.

    Args:
        what: what the message calls it. say: gets each line that the command writes. tail: how many of the last lines
            the message repeats.
        env: `environment()` by default.
        cancelled: once it is set, from whatever thread, the command is ended.

    Raises:
        StageError: the command failed, or was cancelled; the message holds its exit code and the last lines.
    """
    lines: deque[str] = deque(maxlen=tail)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment() if env is None else env,
        start_new_session=True,
    )
    guard = None
    try:
        guard = guarding(process)
        for line in output(process, cancelled or Event()):
            say(line)
            lines.append(line)
    finally:
        stop(process)
        if guard is not None:
            guard.kill()
            guard.wait()
    if cancelled is not None and cancelled.is_set():
        raise StageError(f"{what} was stopped")
    if process.returncode:
        raise StageError("\n  ".join([f"{what} failed with exit code {process.returncode}:", *lines]))


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """This process's environment, with `python` the interpreter that runs this, and output that is not held back."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([here, os.environ.get("PATH", "")]), "PYTHONUNBUFFERED": "1"}


def output(process: subprocess.Popen[str], cancelled: Event) -> Iterator[str]:
    """The lines that a process writes, until it ends; each state of a progress bar is one, and empty ones are left out.

    A thread reads, so that an exception can arrive here at any time.
    """
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in process.stdout or ():
            if line.strip():
                lines.put(line.rstrip())

    reader = Thread(target=read, daemon=True)
    reader.start()
    while not cancelled.is_set() and (process.poll() is None or not lines.empty()):
        with suppress(Empty):
            yield lines.get(timeout=POLL)
    if cancelled.is_set():
        return
    reader.join(timeout=1.0)  # for what was still in the pipe; whatever else holds the pipe open is not waited for
    while not lines.empty():
        yield lines.get()


def guarding(process: subprocess.Popen[str]) -> subprocess.Popen[bytes]:
    """Start a shell that ends a process's group once this process is gone, and cannot end it itself: killed, say.

    The shell waits for the end of its input, a pipe whose other end nobody else holds.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "sh", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """End what is left of a process's group: SIGTERM, and SIGKILL for what is still there after the grace period."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline:
                process.poll()  # an ended leader counts as there until it is asked for
                os.killpg(process.pid, 0)
                time.sleep(POLL)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
