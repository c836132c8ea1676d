"""What a long stage shows while it works, and where it keeps what it has done so far.

Scratch folders live outside DVC's outputs, which DVC removes before a run. Each carries a fingerprint of everything
that would change the result, so that a killed stage goes on only from its own work.
"""

import hashlib
import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.artifacts import LIBRARIES, sha256

SCRATCH = Path("runs/scratch")


def bar(what: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A progress bar with rate and ETA on standard error; no terminal: an update each half minute; in CI: none."""
    shown = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit != " step",
        dynamic_ncols=shown,
        mininterval=0.5 if shown else 30.0,
        disable=bool(os.environ.get("CI")),
    )


def scratch(stage: str, inputs: dict[str, Any]) -> Path:
    """The stage's scratch folder for these inputs, our code and the libraries' versions (made if need be).

    What others left there is removed.
    """
    versions = {name: version(name) for name in LIBRARIES}
    everything = json.dumps([inputs, _code(), versions], sort_keys=True)
    name = hashlib.sha256(everything.encode()).hexdigest()[:24]
    folder = SCRATCH / stage / name
    if folder.parent.is_dir():
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _code() -> str:
    """sha256 of every module of the library and the stages, names included."""
    root = Path(__file__).parents[1]
    files = sorted([*root.glob("pipeline/**/*.py"), *root.glob("stages/**/*.py")])
    listing = [f"{file.relative_to(root).as_posix()} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


def clear(stage: str) -> None:
    """Remove the stage's scratch folders, once its artifact stands."""
    shutil.rmtree(SCRATCH / stage, ignore_errors=True)
