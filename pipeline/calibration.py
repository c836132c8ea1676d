"""Quantize a model layer by layer, so that memory holds the activations of one layer.

Each layer runs twice over the calibration tokens: with its float weights, on inputs that come from the quantized layers
before it, for the Hessians; then with its quantized weights, for the activation ranges and the next layer's inputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import models
from pipeline.quant.activations import activation_scale
from pipeline.quant.grid import sqnr
from pipeline.quant.methods import PTQ_METHODS, Rounded, output_sqnr, rtn
from pipeline.quant.model import QuantizedModel, float_tensors


class _Stop(Exception):
    """Ends a forward once the first layer's inputs are known."""


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    tokens: Tensor,
    valid: Tensor,
    method: str,
    bits: tuple[int, int],
    options: dict[str, Any],
    batch: int,
    dtype: str,
    advance: Callable[[], object],
    measure: bool = True,
) -> tuple[QuantizedModel, pd.DataFrame]:
    """Quantize a model's linears, and observe the ranges of their inputs.

    Args:
        model: float32 causal LM; its linears' weights are replaced by the quantized ones.
        tokens: int64 [sequences, length]. valid: bool of the same shape; other positions are not looked at.
        method: a name of PTQ_METHODS. options: its keyword arguments.
        bits: of weights and of activations (0: activations stay in float).
        batch: sequences a forward. dtype: of the forward's autocast.
        advance: called after each layer.
        measure: whether to compute Hessians; without them the method must need none, and no errors come out.

    Returns:
        The quantized model, and a row for each linear with the SQNR (dB) of its weight and of its output, beside those
        of round to nearest on the same inputs, and the damping that GPTQ took.

    Raises:
        ValueError: an activation is not finite.
    """
    weight_bits, activation_bits = bits
    by_layer: dict[int, list[models.Linear]] = {}
    for linear in models.linears(model):
        by_layer.setdefault(linear.layer, []).append(linear)
    floats = float_tensors(model, {linear.name for group in by_layer.values() for linear in group})
    for name, values in floats.items():
        model.get_parameter(name).copy_(values)

    inputs, kwargs = _first_inputs(model, tokens, batch, dtype)
    masks = valid.split(batch)
    result = QuantizedModel(weight_bits, activation_bits, {}, {}, {}, floats)
    rows = []
    for index, layer in enumerate(models.decoder_layers(model)[1]):
        group = by_layer.get(index, [])
        hessians = _hessians(model, layer, group, inputs, kwargs, masks, dtype) if measure else {}
        for linear in group:
            module = model.get_submodule(linear.name)
            weight = module.weight.detach().clone()
            rounded = PTQ_METHODS[method](weight, hessians.get(linear.name), weight_bits, **options)
            if measure:
                rows.append(_errors(linear, weight, rounded, hessians[linear.name], weight_bits))
            module.weight.copy_(rounded.weight)
            result.codes[linear.name], result.scales[linear.name] = rounded.codes, rounded.scale
            result.latent[linear.name] = rounded.latent
        del hessians
        inputs, ranges = _run_quantized(model, layer, group, inputs, kwargs, masks, dtype)
        if activation_bits:
            result.activation_scales.update({n: activation_scale(top, activation_bits) for n, top in ranges.items()})
        advance()
    return result, pd.DataFrame(rows)


def _errors(linear: models.Linear, weight: Tensor, rounded: Rounded, hessian: Tensor, bits: int) -> dict[str, Any]:
    nearest = rtn(weight, None, bits).weight
    return {
        "layer": linear.layer,
        "role": linear.role,
        "name": linear.name,
        "weight_sqnr": round(sqnr(weight, rounded.weight), 4),
        "output_sqnr": round(output_sqnr(weight, rounded.weight, hessian), 4),
        "rtn_weight_sqnr": round(sqnr(weight, nearest), 4),
        "rtn_output_sqnr": round(output_sqnr(weight, nearest, hessian), 4),
        "damping": rounded.damping,
    }


def _first_inputs(
    model: PreTrainedModel, tokens: Tensor, batch: int, dtype: str
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What the first decoder layer is called with, a batch each: hidden states [batch, length, hidden] and the rest."""
    inputs: list[Tensor] = []
    kwargs: list[dict[str, Any]] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...], given: dict[str, Any]) -> None:
        inputs.append(args[0])
        kwargs.append(given)
        raise _Stop

    handle = models.decoder_layers(model)[1][0].register_forward_pre_hook(catch, with_kwargs=True)
    for part in tokens.split(batch):
        try:
            with models.autocast(dtype):
                model(input_ids=part, use_cache=False)
        except _Stop:
            pass
    handle.remove()
    return inputs, kwargs


def _hessians(
    model: PreTrainedModel,
    layer: nn.Module,
    group: list[models.Linear],
    inputs: list[Tensor],
    kwargs: list[dict[str, Any]],
    masks: tuple[Tensor, ...],
    dtype: str,
) -> dict[str, Tensor]:
    """X^T X of each linear's valid inputs, float32 [in, in]; linears that read the same tensor share one."""
    found: dict[str, Tensor] = {}
    last: dict[str, Any] = {"x": None, "name": ""}
    mask = masks[0]

    def see(linear: models.Linear, x: Tensor) -> None:
        if last["x"] is x:
            found[linear.name] = found[last["name"]]
            return
        last.update(x=x, name=linear.name)
        rows = x[mask].float()
        found.setdefault(linear.name, torch.zeros(x.shape[-1], x.shape[-1])).addmm_(rows.T, rows)

    with _watching(model, group, see):
        for x, given, mask in zip(inputs, kwargs, masks, strict=True):  # noqa: B007  `see` reads the mask
            with models.autocast(dtype):
                layer(x, **given)
            last["x"] = None
    for name, hessian in found.items():
        if not bool(hessian.isfinite().all()):
            raise ValueError(f"the input of {name} is not finite on the calibration tokens; is the teacher sound?")
    return found


def _run_quantized(
    model: PreTrainedModel,
    layer: nn.Module,
    group: list[models.Linear],
    inputs: list[Tensor],
    kwargs: list[dict[str, Any]],
    masks: tuple[Tensor, ...],
    dtype: str,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The layer's outputs, and the greatest magnitude of each linear's valid inputs.

    Raises:
        ValueError: an input is not finite.
    """
    ranges: dict[str, Tensor] = {}
    mask = masks[0]

    def see(linear: models.Linear, x: Tensor) -> None:
        top = x[mask].abs().amax().float()
        ranges[linear.name] = torch.maximum(ranges.get(linear.name, top), top)

    outputs = []
    with _watching(model, group, see):
        for x, given, mask in zip(inputs, kwargs, masks, strict=True):  # noqa: B007  `see` reads the mask
            with models.autocast(dtype):
                out = layer(x, **given)
            outputs.append(out[0] if isinstance(out, tuple) else out)
    bad = [name for name, top in ranges.items() if not bool(top.isfinite())]
    if bad:
        raise ValueError(f"the input of {bad[0]} is not finite on the calibration tokens; is the teacher sound?")
    return outputs, ranges


@contextmanager
def _watching(
    model: PreTrainedModel, group: list[models.Linear], see: Callable[[models.Linear, Tensor], None]
) -> Iterator[None]:
    handles = models.on_layer_inputs(model, group, see)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
