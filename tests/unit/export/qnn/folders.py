"""Tiny models written for the NPU, and opened without it: by onnxruntime on a CPU."""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.export.qnn import compiler as qnn_compiler
from pipeline.export.qnn import folder as qnn_folder
from pipeline.export.qnn.folder import Target
from pipeline.knobs.scheme import Scheme
from pipeline.quant.model import QuantizedModel
from pipeline.runtimes import qnn
from pipeline.runtimes.opened import Asked
from tests import tiny

CHUNK = 8
ASKED = Asked(24, 1, 1)


def rounded(model: PreTrainedModel, scheme: Scheme, tokens: Tensor, valid: Tensor) -> QuantizedModel:
    return calibrate(model, tokens, valid, scheme, Options("rtn", {}, batch=6, measure=False), None, lambda: None).model


def target(tokens: Tensor, context: int = 24, shared: bool = True) -> Target:
    return Target(tokens, CHUNK, context, "v75", shared)


def written(quantized: QuantizedModel, model: PreTrainedModel, folder: Path, asked: Target) -> Path:
    """The folder of graphs that were not compiled; the float model has the quantized one's numbers then."""
    qnn_folder.write_graphs(quantized, model, folder, asked)
    return folder


def on_cpu(folder: Path, model: PreTrainedModel, context: int = 24) -> qnn.InQnn:
    """The graphs of a folder, run as those that are compiled of them."""
    names = (qnn_folder.EMBEDDING, qnn_folder.HEAD)
    sessions = {name: qnn.on_cpu(folder / name, ASKED) for name in names}
    graphs = folder / qnn_folder.UNCOMPILED
    sessions |= {name: qnn.on_cpu(graphs / name, ASKED) for name in qnn_compiler.GRAPHS}
    facts = {"vocabulary": model.config.vocab_size, "context": context, "chunk": CHUNK}
    return qnn.InQnn(sessions, facts, tiny.merging_tokenizer())
