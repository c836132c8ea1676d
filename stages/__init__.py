"""One script a stage of dvc.yaml: read params, load artifacts, call the library, save the artifact."""

import os
import sys
from types import TracebackType

# Before anything imports them: the libraries' own bars, telemetry and fork warnings are no part of a stage's output.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "30")  # of the bars that TQDM_DISABLE does not reach


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A library that cannot be imported, which happens before a stage can look for all of them, in one line."""
    name = (isinstance(error, ModuleNotFoundError) and error.name) or ""
    if name and name.partition(".")[0] not in ("pipeline", "stages"):
        sys.stderr.write(f"{name} is not installed; `pip install --constraint constraints.txt --editable .`\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_what_is_missing
