"""The two large weights outside the decoder's layers: embedding and head.

Rows of the embedding are looked up, so that each stands for itself: round to nearest, with a searched scale where the
method searches any. The head is a linear like the others, and GPTQ rounds it on what the quantized layers hand it.
Neither learns in distillation.
"""

import dataclasses

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.arguments import head_inputs
from pipeline.calibration.layers import Inputs, Runner, refuse_nonfinite
from pipeline.calibration.methods import PTQ_METHODS, Options, round_weight
from pipeline.calibration.rounded_layer import RoundedLayer
from pipeline.knobs.scheme import Scheme, Weights
from pipeline.models import layout
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from pipeline.rounding.methods import Rounded

ROWS = 8192  # of a weight that are rounded at once


def with_own_weights(model: PreTrainedModel, scheme: Scheme, weighted: dict[str, Weights]) -> set[str]:
    """The modules that have a weight of their own: those with a grid, and the head where the embedding's is another."""
    head = layout.head(model)
    parted = head is not None and bool(scheme.embedding.bits) != bool(scheme.head.bits)
    return {*weighted, *([head.name] if head is not None and parted else [])}


def round_embedding(
    model: PreTrainedModel, weighted: dict[str, Weights], options: Options, result: QuantizedModel
) -> None:
    """Round the embedding's rows, where it has a grid, in the model too."""
    embedding = layout.embedding(model)
    if embedding is not None and embedding.name in weighted:
        plain = dataclasses.replace(options, method="mse" if PTQ_METHODS[options.method].rounding != "rtn" else "rtn")
        _round(model, embedding.name, weighted[embedding.name], plain, None, result)


def round_head(
    runner: Runner, tokens: Tensor, weighted: dict[str, Weights], options: Options, result: QuantizedModel
) -> None:
    """Round the head, where it has a grid, in the model too.

    Args:
        runner: after the last layer. tokens: int64 [sequences, length], the runner's.

    Raises:
        ValueError: the model does not call it, or what it reads is not finite.
    """
    head = layout.head(runner.model)
    if head is None or head.name not in weighted:
        return
    hessian = None
    if PTQ_METHODS[options.method].needs_inputs:
        inputs = Inputs.empty(runner.model.get_submodule(head.name).in_features)
        batches = tokens.split([len(mask) for mask in runner.masks])
        for states, mask in zip(
            head_inputs(runner.model, batches, runner.states, runner.dtype), runner.masks, strict=True
        ):
            inputs.add(states[mask].float())
        inputs.finish()
        refuse_nonfinite({head.name: inputs.absmax.amax()})
        hessian = inputs.hessian
    _round(runner.model, head.name, weighted[head.name], options, hessian, result)


def _round(
    model: PreTrainedModel,
    name: str,
    scheme: Weights,
    options: Options,
    hessian: Tensor | None,
    result: QuantizedModel,
) -> None:
    """Round a weight some rows at a time, which memory needs; rows do not look at each other."""
    weight = model.get_submodule(name).weight
    parts = [round_weight(name, rows, scheme, options, hessian) for rows in weight.split(ROWS)]
    step = Step(*(torch.cat(columns) for columns in zip(*(part.step for part in parts), strict=True)))
    codes, latent = (torch.cat([getattr(part, field) for part in parts]) for field in ("codes", "latent"))
    RoundedLayer({name: Rounded(codes, step, latent, scheme, parts[0].damping)}).put_into(model, result)
    del result.latent[name]
