"""What every stage does around its work: a record of what it runs with, one error line instead of a traceback, and a
note of what it took.

Time, memory and speed differ from run to run, so they go to runs/, which no artifact holds and DVC does not track.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

from pipeline.artifacts import environment, inputs, progress
from pipeline.models import float_type
from stages import BEGAN_WITH, sources

USAGE = Path("runs/usage")
SPEEDS = Path("runs/speed")  # of exports in their runtimes
_READ: dict[str, inputs.Inputs] = {}  # what a stage that began reads, by its name


def begin(stage: str, *names: str, repeated: str = "", accelerated: bool = False) -> argparse.Namespace:
    """The paths that dvc.yaml hands to a stage, as `--name path` each; `--repeated key=path` any number of times.

    What the stage runs with is checked and, where `--environment` says where, written down; of several processes, by
    the first. `accelerated`: it computes on GPUs where there are any. What it reads is kept in mind for its end.

    Raises:
        ValueError: a library is installed in another version than versions.yaml pins.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}")
    for name in names:
        parser.add_argument(f"--{name}", required=True, type=str)
    parser.add_argument("--environment", type=Path, help="the file to write down what the stage runs with and on")
    if repeated:
        parser.add_argument(f"--{repeated}", action="append", default=[], metavar="NAME=FOLDER")
    args = parser.parse_args()
    libraries = environment.check()
    stage_inputs = _READ[stage] = inputs.read(stage, BEGAN_WITH)
    if args.environment is not None and os.environ.get("RANK", "0") == "0":
        knob = stage_inputs.knobs.get(f"{stage}.dtype", "")
        dtype = float_type.dtype(knob, environment.where(accelerated)) if knob else ""
        environment.record(args.environment, libraries, stage_inputs, accelerated, dtype)
    return args


def main(stage: str, work: Callable[[], str | None]) -> None:
    """Run a stage's work, which may return its variant's name. A ValueError is the user's, and shown as one line.

    Its checkpoints are removed last, when what it reads is what it began with. Of a stage in several processes, the one
    that launched them notes what they took.
    """
    started, rank = time.monotonic(), os.environ.get("RANK")
    name = stage if rank is None else f"{stage}, process {rank}"
    try:
        with quiet_libraries():
            variant = work()
        _check_unchanged(stage)
        if rank in (None, "0"):
            progress.clear(stage)
        if rank is None:
            _note_usage(f"{stage}@{variant}" if variant else stage, time.monotonic() - started)
    except ValueError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        sys.exit(f"{name}: {error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except SafetensorError as error:
        if "I/O error" not in str(error):  # a full disk, say, which safetensors does not make an OSError
            raise
        sys.exit(f"{name}: {error}")
    finally:
        _READ.pop(stage, None)  # what is refused leaves nothing to a second run in the same process


def _check_unchanged(stage: str) -> None:
    """Raises ValueError if what the stage reads was edited while it ran."""
    began = _READ.get(stage)
    changed = began.changed(inputs.read(stage, sources(), began)) if began else []
    if changed:
        problem = "what it reads has changed while it ran, so what it made is of neither state; run it again:"
        raise ValueError("\n  ".join([problem, *changed]))


def _note_usage(name: str, seconds: float) -> None:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    USAGE.mkdir(parents=True, exist_ok=True)
    usage = {"seconds": round(seconds, 1), "peak_gib": round(peak / 2**20, 2)}
    (USAGE / f"{name}.json").write_text(json.dumps(usage) + "\n")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own notes and bars out of the stage's output; their errors stay, and lm-eval's bars."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sound = tqdm.__init__

    def start(bar: tqdm, *args: Any, **options: Any) -> None:
        if sys._getframe(1).f_globals["__name__"].startswith("compressed_tensors"):  # it heeds neither of the two above
            options["disable"] = True
        sound(bar, *args, **options)

    tqdm.__init__ = start  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        tqdm.__init__ = sound  # type: ignore[method-assign]
