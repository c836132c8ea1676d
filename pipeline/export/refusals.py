"""What formats cannot hold of a model, as far as it is known before anything is quantized."""

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformers import PreTrainedModel

from pipeline.export import gguf_blocks, gguf_model, gguf_tokenizer, mlx_grids, onnx_architecture
from pipeline.knobs.scheme import Weights

NUMBER = r"\.\d+(?=\.)"  # of a layer, in a module's name


def problems(format_name: str, model: PreTrainedModel, tokenizer: Any, grids: Mapping[str, Weights]) -> Iterator[str]:
    """Why a format cannot hold a model: all of it.

    Args:
        grids: of each module whose weight is to be quantized.
    """
    if format_name in REFUSALS:
        yield from REFUSALS[format_name](model, tokenizer, grids)


def _gguf(model: PreTrainedModel, tokenizer: Any, grids: Mapping[str, Weights]) -> Iterator[str]:
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
            yield f"{re.sub(NUMBER, '.*', name)}: {problem}"


def _onnx(model: PreTrainedModel, tokenizer: Any, grids: Mapping[str, Weights]) -> Iterator[str]:
    """Architecture alone: the graph holds every grid."""
    problem = onnx_architecture.problem(model.config)
    if problem:
        yield problem


def _installed(package: str, install: str) -> Iterator[str]:
    """A runtime that `prove` opens the format in, where it is not there."""
    try:
        version(package)
    except PackageNotFoundError:
        yield f"{package}, in which it is proven, is not installed: `{install}`"


def _mlx(model: PreTrainedModel, tokenizer: Any, grids: Mapping[str, Weights]) -> Iterator[str]:
    """Architecture, the width of each weight, and mlx-lm itself, which is no default dependency."""
    yield from _installed("mlx-lm", "pip install --constraint constraints.txt --editable '.[mlx]'")
    problem = mlx_grids.architecture_problem(model.config)
    if problem:
        yield problem
    for name, grid in grids.items():
        problem = mlx_grids.grid_problem(grid, model.get_submodule(name).weight.shape[1])
        if problem:
            yield f"{re.sub(NUMBER, '.*', name)}: {problem}"


REFUSALS = {"gguf": _gguf, "onnx": _onnx, "mlx": _mlx}  # other formats hold every model that transformers does
