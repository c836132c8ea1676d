"""A stage ends at once when it is told to, and together with the DVC and the make that started it.

Python's own handler of SIGINT waits for the operation under way, which may take minutes, and it is not there at all in
what a script has started in the background. DVC leaves its stages behind when it is ended, and its lock goes with it,
so that the next run would work beside them. Make waits for what it runs when it alone gets a SIGINT or SIGHUP. No stage
leaves anything half-written under a final name, so it may end anywhere, and goes on from its checkpoints.

What cannot be mended from here: DVC ignores a SIGINT that is sent to it alone while a stage runs. A terminal sends it
to all; `kill` without an option sends SIGTERM.
"""

import os
import signal
import time
from pathlib import Path
from threading import Thread

POLL = 0.2  # seconds
MAKE = ("make", "gmake")


def when_told() -> None:
    """Let SIGINT end this process as SIGTERM and SIGHUP do (unless nohup has it ignored); under DVC, end with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.environ.get("DVC_STAGE"):
        Thread(target=_with, args=(os.getppid(),), daemon=True).start()


def _with(parent: int) -> None:
    """Wait until what has started this process is gone or told to end; then end.

    Between DVC and this process there may be shells that wait for it. They, and a make above DVC, are known on Linux.
    """
    starters, process = dict[int, int](), parent
    while _is_shell_of_dvc(process):
        starters[process] = _parent(process)
        process = starters[process]
    make = _parent(process) if _name(_parent(process)) in MAKE else 0
    if make:
        starters[process] = make
    caught = _caught(make)
    while os.getppid() == parent and all(_parent(child) == starter for child, starter in starters.items()):
        if _caught(make) != caught:  # make sets the default back for the signal that it got, and waits for its recipe
            break
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_shell_of_dvc(process: int) -> bool:
    """Whether a process is a shell that has started a stage's command and waits for it, as fish and dash do."""
    words = _proc(process, "cmdline").rstrip("\0").split("\0")
    return words[-2:-1] == ["-c"] and " -m stages." in words[-1]


def _parent(process: int) -> int:
    """The parent of a process; 0 where there is no such process."""
    return int(_field(process, "PPid") or 0)


def _name(process: int) -> str:
    return _field(process, "Name")


def _caught(process: int) -> str:
    """The signals that a process has handlers for, a bit each, in hexadecimal."""
    return _field(process, "SigCgt")


def _field(process: int, name: str) -> str:
    """A line of Linux's /proc/PID/status; empty where there is none."""
    lines = dict(line.partition(":")[::2] for line in _proc(process, "status").splitlines())
    return lines.get(name, "").strip()


def _proc(process: int, file: str) -> str:
    try:
        return Path(f"/proc/{process}/{file}").read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or the process is gone
        return ""
