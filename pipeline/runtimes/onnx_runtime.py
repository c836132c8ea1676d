"""onnxruntime on a CPU, told to compute in float32: with the signals on the scheme's grids, as the file has them, and,
to the last digits, with these left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from pipeline.export.onnx.folder import EXACT, WEIGHTS
from pipeline.export.onnx.in_float import without_grids
from pipeline.models import saved
from pipeline.models.loading import reason
from pipeline.runtimes import cached_graph, stepping
from pipeline.runtimes.cached_graph import LOGITS, PAST, Arrays
from pipeline.runtimes.folder_tokenizer import FromFolder
from pipeline.runtimes.opened import Asked, Opened, Predictions, Speed, timed_alone

FOLDER = "session.model_external_initializers_file_folder_path"  # of the tensors of a graph that is no file
ERRORS = 3  # and nothing less serious is told


class InOnnxRuntime(FromFolder):
    """A session of onnxruntime as an opened export; what it offers is as `Opened` says."""

    context: int | None = None  # the graph is for texts of any length

    def __init__(self, session: Any, tokenizer: Any) -> None:
        self.session, self.tokenizer = session, tokenizer
        caches = [value for value in session.get_inputs() if value.name.startswith(PAST)]
        self.caches = {value.name: (value.shape[1], value.shape[3]) for value in caches}
        self.outputs = [value.name for value in session.get_outputs()]
        self.vocabulary = int(session.get_outputs()[self.outputs.index(LOGITS)].shape[-1])

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        for sequence in tokens.split(1):
            logits, _ = self._step(sequence.numpy(), None)
            yield Predictions(torch.arange(logits.shape[1]), torch.from_numpy(logits[0]))

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        return stepping.greedy(self._step, prompts.numpy(), count)

    def speed(self, prompt: Tensor, count: int) -> Speed:
        return timed_alone(self.continuations, prompt, count)

    def close(self) -> None:
        del self.session

    def _step(self, tokens: np.ndarray, before: Arrays | None) -> tuple[np.ndarray, Arrays]:
        """As `stepping.Step` has it; what is kept is keys and values by their names."""
        fed = cached_graph.inputs(tokens, self.caches, before)
        outputs = dict(zip(self.outputs, self.session.run(self.outputs, fed), strict=True))
        return outputs.pop(LOGITS), outputs


def open_export(folder: Path, asked: Asked) -> Opened:
    """Open a folder's graph as it is.

    Raises:
        ValueError: there is none, or onnxruntime does not load it.
    """
    return _opened(folder, asked, str(folder / WEIGHTS), {})


def open_in_float(folder: Path, asked: Asked) -> Opened:
    """Open a folder's graph without the grids of its signals.

    Raises:
        ValueError: there is none, or onnxruntime does not load it.
    """
    file = folder / WEIGHTS
    plain = without_grids(onnx.load(file, load_external_data=False)) if file.is_file() else onnx.ModelProto()
    return _opened(folder, asked, plain.SerializeToString(), {FOLDER: str(folder)})


def _opened(folder: Path, asked: Asked, graph: str | bytes, entries: dict[str, str]) -> Opened:
    import onnxruntime  # here: other runtimes do without it

    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; it is no export for onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = asked.threads, ERRORS
    for key, value in {**EXACT, **entries, "session.intra_op.allow_spinning": "0"}.items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for it, under no common one
        raise ValueError(
            f"onnxruntime does not load {folder / WEIGHTS}, it may be truncated: {reason(error)}"
        ) from None
    return InOnnxRuntime(session, saved.load_tokenizer(folder))
