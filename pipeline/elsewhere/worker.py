"""The far side of environments.py: a runtime in an environment of its own, asked over its standard input.

A line of JSON comes in and one goes out; arrays lie in files beside. Nothing here needs torch, transformers or any
library of the project's but NumPy.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class Request(NamedTuple):
    """What a runtime is opened for; the fields are those of `opened.Asked`, and the folder of the export."""

    folder: Path
    context: int
    sequences: int
    threads: int


class Worker(Protocol):
    """A runtime that has opened an export.

    facts: `vocabulary`, and `context`, tokens or None, as `Opened` has them.
    """

    facts: dict[str, Any]

    def predictions(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of `opened.Predictions` of one sequence, int64 [length]; no `ids` where values are logits."""

    def continuations(self, prompts: np.ndarray, count: int) -> list[list[int]]:
        """As `Opened` has it, of int64 [prompts, length]."""

    def ids(self, text: str) -> list[int] | None:
        """As `Opened` has it."""

    def chat(self, messages: list[dict[str, str]]) -> str | None:
        """As `Opened` has it."""


def main(open_export: Callable[[Request], Worker]) -> None:
    """Open what the command line names, and answer until the input ends.

    What the runtime prints goes to the error output.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name in ("context", "sequences", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    worker = _opened(open_export, Request(**vars(parser.parse_args())), answer)
    if worker is None:
        return
    for line in sys.stdin:
        try:
            answer(result=_result(worker, **json.loads(line)))
        except Exception as error:  # whatever a runtime raises; the other side tells of it
            answer(error=_line(error))


def _opened(open_export: Callable[[Request], Worker], request: Request, answer: Callable[..., None]) -> Worker | None:
    try:
        worker = open_export(request)
    except Exception as error:
        answer(error=_line(error))
        return None
    answer(result=worker.facts)
    return worker


def _result(worker: Worker, do: str, arguments: Sequence[Any], tokens: str, arrays: str) -> Any:
    """Call a method.

    Args:
        tokens: a file with its first argument, or empty. arrays: the file that the arrays of its answer go to.
    """
    before = [np.load(tokens)] if tokens else []
    answered = getattr(worker, do)(*before, *arguments)
    if not isinstance(answered, dict):
        return answered
    np.savez(arrays, **answered)
    return None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {' '.join(text.split())}" if text else type(error).__name__
