"""What every stage does around its work: one error line instead of a traceback, and a note of what it took.

Time and memory differ from run to run, so they go to runs/usage/, which no artifact holds and DVC does not track.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

USAGE = Path("runs/usage")


def paths(stage: str, *names: str) -> argparse.Namespace:
    """The paths that dvc.yaml hands to a stage, as `--name path` each."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}")
    for name in names:
        parser.add_argument(f"--{name}", required=True, type=str)
    return parser.parse_args()


def main(stage: str, work: Callable[[], str | None]) -> None:
    """Run a stage's work, which may return its variant's name. A ValueError is the user's, and shown as one line."""
    started = time.monotonic()
    try:
        with quiet_libraries():
            variant = work()
    except ValueError as error:
        sys.exit(f"{stage}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{stage}: {error.strerror or error}: {error.filename or ''}".rstrip(": "))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    name = f"{stage}@{variant}" if variant else stage
    USAGE.mkdir(parents=True, exist_ok=True)
    usage = {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(peak / 2**20, 2)}
    (USAGE / f"{name}.json").write_text(json.dumps(usage) + "\n")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own notes and bars out of the stage's output; their warnings and errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
