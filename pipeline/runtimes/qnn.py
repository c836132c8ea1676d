"""A compiled folder on Qualcomm's Hexagon NPU, which onnxruntime-qnn simulates on x86-64.

The simulator is slow: some seconds a token of a small model. It does not load a binary that two graphs share (QNN 2.51
ends the process there), so of such a folder the graphs that it was compiled of are compiled anew, each for itself.
"""

import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from pipeline.artifacts.contract import read_json
from pipeline.export.onnx.folder import EXACT
from pipeline.export.qnn import compiler as qnn_compiler
from pipeline.export.qnn import folder as qnn_folder
from pipeline.export.qnn import session as qnn_session
from pipeline.models import saved
from pipeline.models.loading import reason
from pipeline.runtimes.folder_tokenizer import FromFolder
from pipeline.runtimes.opened import Asked, Opened, Predictions, Speed

PAST, PRESENT = "past_key_values", "present"
ERRORS = 3  # and nothing less serious is told
Arrays = dict[str, np.ndarray]


class InQnn(FromFolder):
    """Sessions for embedding, a chunk, a token and the head as an opened export; what it offers is as `Opened` says."""

    def __init__(self, sessions: dict[str, Any], facts: dict[str, Any], tokenizer: Any) -> None:
        self.sessions, self.tokenizer = sessions, tokenizer
        self.outputs = {name: [value.name for value in session.get_outputs()] for name, session in sessions.items()}
        self.vocabulary: int = facts["vocabulary"]
        self.context: int | None = facts["context"]
        self.places: int = facts["context"]
        self.chunk: int = facts["chunk"]
        self.seconds: dict[str, list[float]] = {name: [] for name in qnn_compiler.GRAPHS}

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        for sequence in tokens:
            logits = torch.from_numpy(self.read(sequence.numpy(), self.empty()))
            yield Predictions(torch.arange(len(logits)), logits)

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        """Through a text's end."""
        return [self._written(prompt.numpy(), count) for prompt in prompts]

    def speed(self, prompt: Tensor, count: int) -> Speed:
        """Of what was run before, as the simulator would take as long again; runs what was not."""
        if not all(self.seconds.values()):
            self._written(prompt.numpy(), 2)
        chunk, token = (min(self.seconds[name]) for name in qnn_compiler.GRAPHS)
        return Speed(self.chunk / chunk, 1 / token)

    def close(self) -> None:
        self.sessions.clear()

    def _written(self, prompt: np.ndarray, count: int) -> list[int]:
        cache, written = self.empty(), list[int]()
        logits = self.read(prompt, cache)
        for read in range(len(prompt), len(prompt) + count):
            written.append(int(logits[-1].argmax()))
            if len(written) < count:
                logits = self._run(np.array(written[-1:]), read, cache)
        return written

    def empty(self) -> Arrays:
        """A cache, float16 [1, key heads, context, head size] of each input that holds a part of it."""
        inputs = self.sessions[qnn_compiler.GRAPHS[0]].get_inputs()
        shapes = {value.name: value.shape for value in inputs if value.name.startswith(PAST)}
        return {name: np.zeros((1, h, self.places, size), np.float16) for name, (_, h, _, size) in shapes.items()}

    def read(self, text: np.ndarray, cache: Arrays) -> np.ndarray:
        """Logits [length, vocabulary] of a text from its beginning, int64 [length]: by chunks while one has room."""
        logits, read = list[np.ndarray](), 0
        while read < len(text):
            part = text[read : read + (self.chunk if read + self.chunk <= self.places else 1)]
            logits.append(self._run(part, read, cache))
            read += len(part)
        return np.concatenate(logits)

    def _run(self, part: np.ndarray, read: int, cache: Arrays) -> np.ndarray:
        """Logits of some tokens after `read` others; a chunk is filled up with what no token before it sees."""
        name = qnn_compiler.GRAPHS[len(part) == 1 and self.chunk > 1]
        width = self.chunk if name == qnn_compiler.GRAPHS[0] else 1
        ids = np.zeros((1, width), np.int64)
        ids[0, : len(part)] = part
        before = self._call(qnn_folder.EMBEDDING, {"input_ids": ids, "past_length": np.array([read])})
        began = time.perf_counter()
        after = self._call(name, {**before, **{key: part[:, :, : self.places - width] for key, part in cache.items()}})
        self.seconds[name].append(time.perf_counter() - began)
        for key in cache:
            cache[key][:, :, read : read + len(part)] = after[key.replace(PAST, PRESENT)][:, :, : len(part)]
        hidden = after["last_hidden"][:, : len(part)]
        return self._call(qnn_folder.HEAD, {"last_hidden": hidden})["logits"][0]

    def _call(self, name: str, inputs: Arrays) -> Arrays:
        return dict(zip(self.outputs[name], self.sessions[name].run(None, inputs), strict=True))


def open_export(folder: Path, asked: Asked) -> Opened:
    """Open a folder by its qnn.json.

    Raises:
        ValueError: there is none, onnxruntime-qnn is not installed, or does not load what is there.
    """
    qnn_compiler.installed()
    if not (folder / qnn_folder.FACTS).is_file():
        raise ValueError(f"{folder} has no {qnn_folder.FACTS}; it is no export for {qnn_compiler.PACKAGE}")
    facts = read_json(folder / qnn_folder.FACTS)
    compiled = folder / qnn_folder.UNCOMPILED if facts["shared"] and simulated() else folder
    try:
        sessions = {name: on_cpu(folder / name, asked) for name in (qnn_folder.EMBEDDING, qnn_folder.HEAD)}
        for name in qnn_compiler.GRAPHS:
            sessions[name] = qnn_session.open_session(compiled / name, facts["architecture"], {}, asked.threads)
    except Exception as error:  # onnxruntime has classes of its own for it, under no common one
        raise ValueError(
            f"{qnn_compiler.PACKAGE} does not load {folder}, it may be truncated: {reason(error)}"
        ) from None
    return InQnn(sessions, facts, saved.load_tokenizer(folder))


def simulated() -> bool:
    """Whether this machine has no NPU of Qualcomm's."""
    return platform.machine() in ("x86_64", "AMD64")


def on_cpu(file: Path, asked: Asked) -> Any:
    """A session of a graph on the CPU, told to compute in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = asked.threads, ERRORS
    for key, value in {**EXACT, "session.intra_op.allow_spinning": "0"}.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
