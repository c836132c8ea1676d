"""What a long stage shows while it works, and where it keeps what it has done so far.

Scratch folders live outside DVC's outputs, which DVC removes before a run. Each carries a fingerprint of everything
that would change the result, so that a killed stage goes on only from its own work.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.artifacts import environment
from pipeline.artifacts.contract import LIBRARIES, sha256

SCRATCH = Path("runs/scratch")
LOCK = "lock"  # held by the process that works in a folder; its number is in it
MEASURED = 3.0  # seconds of work that tell how long the rest will take
SLOW = 60.0  # seconds of a first update, of which one does not wait for the second
LONG = 20.0  # seconds of work that are worth a line
WAIT = 5.0  # seconds that one which was ended just now may take to be gone
_HELD: dict[str, int] = {}  # this process's locks, by stage


class Bar(tqdm):
    """A progress bar that says once, also where it is not shown, how long its work will take, if that is long."""

    def __init__(self, what: str, total: int, initial: int, **options: Any) -> None:
        self.what, self.ahead = what, total - initial
        self.began, self.units = time.monotonic(), 0.0  # when, and the units done since then
        self.first = (0.0, 0.0)  # seconds and units of the first update, which takes longer than those that follow
        self.said = False
        super().__init__(desc=what, total=total, initial=initial, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by n units."""
        self.units += n or 0
        if not self.said and self.units > 0:
            self._measure(time.monotonic() - self.began)
        return super().update(n)

    def _measure(self, elapsed: float) -> None:
        """Say how long all of it will take, once that is known."""
        if not self.first[1]:
            self.first = elapsed, self.units
        seconds, units = (part - first for part, first in zip((elapsed, self.units), self.first, strict=True))
        if not units:
            seconds, units = self.first if elapsed >= SLOW else (0.0, 1.0)
        if seconds < MEASURED:
            return
        self.said = True
        whole = self.first[0] + seconds / units * (self.ahead - self.first[1])
        if whole >= LONG:
            line = f"{self.what}: about {duration(whole)} here, measured on the first {duration(elapsed)} of it"
            self.write(line, file=sys.stderr)


def bar(what: str, total: int, unit: str, initial: int = 0) -> Bar:
    """A progress bar with rate and ETA on standard error; no terminal: an update each half minute; in CI: none."""
    shown = sys.stderr.isatty()
    return Bar(
        what,
        total,
        initial,
        unit=unit,
        unit_scale=unit != " step",
        dynamic_ncols=shown,
        mininterval=0.5 if shown else 30.0,
        disable=bool(os.environ.get("CI")),
    )


def duration(seconds: float) -> str:
    """A length of time as one says it: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def scratch(stage: str, inputs: dict[str, Any], of_all: Callable[[int], int] = int) -> Path:
    """The stage's scratch folder for these inputs, our code, the libraries' versions and this machine.

    It is made if need be, and is this process's until it ends. What others left there is removed, unless a process
    holds it. Of several processes, the first (RANK 0) holds it for all.

    Args:
        inputs: whatever else would change the result, as JSON has it.
        of_all: where several processes share a folder, the sum of a number below 2**48 over all of them.

    Raises:
        ValueError: another process is at the same work.
    """
    versions = {name: version(name) for name in LIBRARIES}
    machine = int(_digest(environment.machine())[:12], 16)
    folder = SCRATCH / stage / _digest([inputs, _code(), versions, of_all(machine)])[:24]
    if os.environ.get("RANK", "0") != "0":
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    _let_go(stage)
    _HELD[stage] = _hold(folder, WAIT)
    _remove_left(stage, but=folder)
    return folder


def clear(stage: str) -> None:
    """Remove the stage's scratch folders, once its artifact stands; not those that another process holds."""
    _let_go(stage)
    _remove_left(stage)


def _let_go(stage: str) -> None:
    if stage in _HELD:
        os.close(_HELD.pop(stage))


def _hold(folder: Path, wait: float) -> int:
    """A descriptor by which this process holds a folder (made if need be) until it is closed, or the process ends.

    Args:
        wait: seconds to wait for another process, which may be about to end, to let go of it.

    Raises:
        ValueError: it does not.
    """
    deadline = time.monotonic() + wait
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # removed since, by one that held it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace") or "unknown"
            os.close(lock)
            if time.monotonic() > deadline:
                raise ValueError(
                    f"process {holder} is at the very same work, in {folder}; wait until it is done, or end it"
                ) from None
            time.sleep(0.1)
            continue
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / LOCK), os.fstat(lock)):
                os.ftruncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
                return lock
        os.close(lock)


def _remove_left(stage: str, but: Path | None = None) -> None:
    """Remove the stage's folders that no process holds."""
    for folder in (SCRATCH / stage).glob("*/"):
        if folder == but:
            continue
        with suppress(ValueError):
            lock = _hold(folder, wait=0)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    with suppress(OSError):  # there is none, or something in it
        (SCRATCH / stage).rmdir()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _code() -> str:
    """sha256 of every module of the library and the stages, names included."""
    root = Path(__file__).parents[2]
    files = sorted([*root.glob("pipeline/**/*.py"), *root.glob("stages/**/*.py")])
    listing = [f"{file.relative_to(root).as_posix()} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()
