"""A folder for Qualcomm's Hexagon NPU: embedding and head for the CPU, and all between them compiled for the NPU.

    embedding.onnx, head.onnx    for onnxruntime on the CPU
    chunk.onnx, token.onnx, *.bin   compiled: for a prompt's tokens, and for one token, see decoder.py
    qnn.json                     the NPU's architecture, the tokens of a chunk, the places of the cache
    graphs/                      what was compiled, to be read back, and to be compiled again for another chip

onnxruntime-genai does not run it: its cache for graphs of fixed shapes takes uint8 alone (WindowedKeyValueCache, 0.18).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.artifacts.contract import write_json
from pipeline.export import row_scales
from pipeline.export.onnx import architecture
from pipeline.export.onnx import folder as onnx_folder
from pipeline.export.onnx.graph import CONSTANT, Graph
from pipeline.export.qnn import compiler, decoder, grids
from pipeline.export.qnn.ranges import observe
from pipeline.export.qnn.tensors import OPSET
from pipeline.models import saved
from pipeline.quant.model import QuantizedModel

FACTS = "qnn.json"
UNCOMPILED = "graphs"
EMBEDDING, HEAD = "embedding.onnx", "head.onnx"


class Target(NamedTuple):
    """What is compiled for, and the text whose ranges are observed.

    Attributes:
        tokens: int64 [sequences, length]. chunk: tokens of a prompt that are read at once. context: places of the KV
            cache. architecture: a key of `compiler.CHIPS`. shared: one binary for both graphs.
    """

    tokens: Tensor
    chunk: int
    context: int
    architecture: str
    shared: bool


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path, target: Target) -> None:
    """Write graphs, contexts, facts and the teacher's tokenizer.

    Args:
        model: the float model, which gives the config. teacher: its folder.

    Raises:
        ValueError: the model does not fit the NPU, or is not compiled; before any work where that is known.
    """
    version = compiler.installed()
    problems = list(dict.fromkeys(_refusals(quantized, model, target.context)))
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"qnn cannot hold this model; mend it, or leave qnn out of export.formats:\n  {lines}")
    write_graphs(quantized, model, out, target)
    compiler.compile_graphs(out / UNCOMPILED, out, target.architecture, target.shared)
    facts = {"architecture": target.architecture, "chunk": target.chunk, "context": target.context}
    facts |= {"shared": target.shared, "vocabulary": model.config.vocab_size, compiler.PACKAGE: version}
    write_json(out / FACTS, facts)
    saved.load_tokenizer(teacher).save_pretrained(out)


def _refusals(quantized: QuantizedModel, model: PreTrainedModel, context: int) -> Iterator[str]:
    """Why the NPU does not hold a quantized model."""
    outside = grids.outside(model)
    inputs = {name: quantizer.scheme for name, quantizer in quantized.inputs.items()}
    yield from filter(None, (architecture.problem(model.config), grids.too_long(model, context)))
    yield from grids.problems(quantized.schemes, inputs, quantized.kv_cache, outside)
    for name, step in quantized.steps.items():
        if name not in outside and not bool((step.scale > 0).all()):
            yield f"{row_scales.all_layers(name)}: its weight has scales that are not above zero; keep them positive"


def write_graphs(quantized: QuantizedModel, model: PreTrainedModel, out: Path, target: Target) -> None:
    """Write all but what is compiled."""
    quantized.untie(model)
    ranges = observe(model, quantized, target.tokens)
    with Graph(out / EMBEDDING) as graph:
        decoder.Beginning(graph, model, quantized, target.context).write()
    with Graph(out / HEAD) as graph:
        decoder.Head(graph, model, quantized).write()
    (out / UNCOMPILED).mkdir()
    like = None
    for name, tokens in zip(compiler.GRAPHS, (target.chunk, 1), strict=True):
        with Graph(out / UNCOMPILED / name, OPSET, like) as like:
            shape = tokens, target.context
            decoder.FixedDecoder(like, model, quantized, ranges, shape).write()


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Read with onnx's own reader what was compiled and what the CPU computes, and compare as of the format onnx.

    Raises:
        ValueError: tensors are missing, foreign, or not those that were quantized, bit for bit; or a file is missing.
    """
    files = [folder / EMBEDDING, folder / HEAD, *(folder / UNCOMPILED / name for name in compiler.GRAPHS)]
    missing = [file for file in (*files, folder / FACTS, *_contexts(folder)) if not file.is_file()]
    if missing:
        raise ValueError(f"{folder} is no whole export: it lacks {', '.join(file.name for file in missing)}")
    stored: dict[str, TensorProto] = {}
    differ = list[str]()
    for file in files:
        tensors = {t.name: t for t in onnx.load(file).graph.initializer if not t.name.startswith(CONSTANT)}
        differ += [name for name, tensor in tensors.items() if not _same(stored.get(name, tensor), tensor)]
        stored |= tensors
    if differ:
        raise ValueError(f"files of {folder} hold different tensors under one name: {differ[: onnx_folder.SHOWN]}")
    onnx_folder.compare(quantized, model, stored, str(folder))


def _contexts(folder: Path) -> list[Path]:
    """The compiled graphs, and the binaries that they name."""
    files = [folder / name for name in compiler.GRAPHS]
    for file in [file for file in files if file.is_file()]:
        for node in onnx.load(file, load_external_data=False).graph.node:
            named: Mapping[str, Any] = {attribute.name: attribute.s for attribute in node.attribute}
            if named.get("ep_cache_context"):
                files.append(folder / named["ep_cache_context"].decode())
    return list(dict.fromkeys(files))


def _same(ours: TensorProto, theirs: TensorProto) -> bool:
    return ours is theirs or np.array_equal(onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs))
