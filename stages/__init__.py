"""One script a stage of dvc.yaml: read params, load artifacts, call the library, save the artifact."""

import os
import sys
from pathlib import Path
from types import TracebackType

from pipeline.artifacts import dvc_hashes, ending

if sys.argv[0] == "-m":  # what it is while `python -m stages.…` imports this package, and in nothing else
    ending.when_told()

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


def sources() -> dict[str, str]:
    """The md5 of each source file, by its path in the project, which is the working directory."""
    files = [file for folder in ("pipeline", "stages") for file in dvc_hashes.files_of(Path(folder))]
    return {file.as_posix(): dvc_hashes.file_md5(file.read_bytes()) for file in files}


BEGAN_WITH = sources()  # before anything of it is imported but these two
