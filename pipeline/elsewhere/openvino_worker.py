"""OpenVINO on a CPU, told to compute in float32: it leaves the grids of 16-bit inputs out, and rounds none to 8 bits.

Run in an environment that has it; see environments.py. One model a process: with two, OpenVINO 2026.4 ended it.
"""

from typing import Any

import numpy as np
import openvino

from pipeline.elsewhere.worker import Request, main
from pipeline.runtimes import cached_graph, stepping
from pipeline.runtimes.cached_graph import LOGITS, PAST, PRESENT, Arrays

FILE = "model.onnx"
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"}


class InOpenVino:
    """A `worker.Worker`; the tokenizer is none of its own."""

    def __init__(self, request: Request) -> None:
        options = {**EXACT, "INFERENCE_NUM_THREADS": request.threads}
        compiled = openvino.Core().compile_model(str(request.folder / FILE), "CPU", options)
        self.request = compiled.create_infer_request()
        shapes = {port.any_name: port.partial_shape for port in compiled.inputs}
        self.caches = {
            name: (shape[1].get_length(), shape[3].get_length()) for name, shape in shapes.items() if PAST in name
        }
        self.outputs = {_name(port.names): port for port in compiled.outputs}
        vocabulary = compiled.output(LOGITS).partial_shape[2].get_length()
        self.facts: dict[str, Any] = {"vocabulary": vocabulary, "context": None}

    def predictions(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        logits, _ = self._step(tokens[None], None)
        return {"positions": np.arange(len(tokens)), "values": logits[0]}

    def continuations(self, prompts: np.ndarray, count: int) -> list[list[int]]:
        return stepping.greedy(self._step, prompts, count)

    def ids(self, text: str) -> list[int] | None:
        return None

    def chat(self, messages: list[dict[str, str]]) -> str | None:
        return None

    def _step(self, tokens: np.ndarray, before: Arrays | None) -> tuple[np.ndarray, Arrays]:
        self.request.infer(cached_graph.inputs(tokens, self.caches, before))
        outputs = {name: np.array(self.request.get_tensor(port).data) for name, port in self.outputs.items()}
        return outputs.pop(LOGITS), outputs


def _name(names: set[str]) -> str:
    """Of an output's names the graph's own: OpenVINO adds others, of nodes that it has merged."""
    (name,) = [name for name in names if name == LOGITS or name.startswith(PRESENT)]
    return name


if __name__ == "__main__":
    main(InOpenVino)
