"""What formats cannot hold of a model, as far as it is known before anything is quantized."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from pipeline.export import extras
from pipeline.export.executorch import grids as executorch_grids
from pipeline.export.executorch import package as executorch_package
from pipeline.export.gguf import blocks as gguf_blocks
from pipeline.export.gguf import model as gguf_model
from pipeline.export.gguf import tokenizer as gguf_tokenizer
from pipeline.export.mlx import grids as mlx_grids
from pipeline.export.onnx import architecture as onnx_architecture
from pipeline.export.qnn import compiler as qnn_compiler
from pipeline.export.qnn import grids as qnn_grids
from pipeline.export.row_scales import all_layers
from pipeline.knobs.scheme import Activations, KVCache, Weights


class Signals(NamedTuple):
    """How inputs, by the linear's name, and KV cache are to be quantized."""

    inputs: Mapping[str, Activations] = {}
    kv_cache: KVCache = KVCache(0)


Grids = Mapping[str, Weights]  # of modules, by name
IN_FLOAT = Signals()


def problems(
    format_name: str,
    model: PreTrainedModel,
    tokenizer: Any,
    grids: Grids,
    signals: Signals = IN_FLOAT,
) -> Iterator[str]:
    """Why a format cannot hold a model: all of it.

    Args:
        grids: of each module whose weight is to be quantized.
    """
    if format_name in REFUSALS:
        yield from REFUSALS[format_name](model, tokenizer, grids, signals)


def _gguf(model: PreTrainedModel, tokenizer: Any, grids: Grids, signals: Signals) -> Iterator[str]:
    """Architecture, tensors, tokenizer, and the width of each weight."""
    checks: list[Callable[[], object]] = [
        lambda: gguf_model.tensor_names(model, [name for name, _ in model.named_parameters()]),
        lambda: gguf_tokenizer.splitting(tokenizer),
    ]
    for attempt in checks:
        try:
            attempt()
        except ValueError as error:
            yield str(error)
    for name, grid in grids.items():
        problem = gguf_blocks.problem(grid, model.get_submodule(name).weight.shape[1])
        if problem:
            yield f"{all_layers(name)}: {problem}"


def _onnx(model: PreTrainedModel, tokenizer: Any, grids: Grids, signals: Signals) -> Iterator[str]:
    """Architecture, and keys per channel: the graph holds every other grid."""
    problem = onnx_architecture.problem(model.config)
    if problem:
        yield problem
    problem = onnx_architecture.cache_problem(signals.kv_cache)
    if problem:
        yield problem


def _installed(package: str, purpose: str, install: str) -> Iterator[str]:
    """A package that a format is compiled or proven in, where it is not there."""
    try:
        extras.installed(package, f"{package}, {purpose}, is not installed", install)
    except ValueError as error:
        yield str(error)


def _mlx(model: PreTrainedModel, tokenizer: Any, grids: Grids, signals: Signals) -> Iterator[str]:
    """Architecture, the width of each weight, and mlx-lm itself, which is no default dependency."""
    yield from _installed("mlx-lm", "in which it is proven", extras.install("mlx"))
    problem = mlx_grids.architecture_problem(model.config)
    if problem:
        yield problem
    for name, grid in grids.items():
        problem = mlx_grids.grid_problem(grid, model.get_submodule(name).weight.shape[1])
        if problem:
            yield f"{all_layers(name)}: {problem}"


def _qnn(model: PreTrainedModel, tokenizer: Any, grids: Grids, signals: Signals) -> Iterator[str]:
    """The compiler, which is no default dependency, architecture, and the grids of weights and inputs."""
    yield from _installed(qnn_compiler.PACKAGE, "which compiles it", qnn_compiler.INSTALL)
    problem = onnx_architecture.problem(model.config)
    if problem:
        yield problem
    yield from qnn_grids.problems(grids, signals.inputs, signals.kv_cache, qnn_grids.outside(model))


def _executorch(model: PreTrainedModel, tokenizer: Any, grids: Grids, signals: Signals) -> Iterator[str]:
    """ExecuTorch, which is no default dependency, architecture, and the grids of weights and inputs."""
    yield from _installed(executorch_package.PACKAGE, "which compiles it", executorch_package.INSTALL)
    problem = executorch_grids.architecture_problem(model)
    if problem:
        yield problem
    yield from executorch_grids.problems(model, grids, signals.inputs, signals.kv_cache)


REFUSALS = {
    "gguf": _gguf,
    "onnx": _onnx,
    "mlx": _mlx,
    "qnn": _qnn,
    "executorch": _executorch,
}  # other formats hold every model that transformers does
