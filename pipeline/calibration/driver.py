"""Quantize a model layer by layer.

Each layer runs twice over the calibration tokens: with its float weights, on inputs that come from the quantized
layers before it, for the Hessians; then with its quantized weights, for the activation ranges and the next layer's
inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration import embedding_head
from pipeline.calibration.fisher import Fisher
from pipeline.calibration.layers import Inputs, Runner
from pipeline.calibration.methods import PTQ_METHODS, Options, round_weight
from pipeline.calibration.observers import COUNTING, static_quantizer
from pipeline.calibration.plan import plan
from pipeline.calibration.rescale import rescale
from pipeline.calibration.rounded_layer import RoundedLayer
from pipeline.knobs.scheme import Activations, Scheme, Weights
from pipeline.models import layout, memory
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import sqnr
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.model import QuantizedModel, float_tensors, state, untie_head
from pipeline.rounding.methods import Rounded, output_sqnr, rtn


@dataclass(frozen=True)
class Calibrated:
    """errors: a row a linear, see `_errors`. skipped: rescaling pairs that do not fold."""

    model: QuantizedModel
    errors: pd.DataFrame
    skipped: list[str]


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    tokens: Tensor,
    valid: Tensor,
    scheme: Scheme,
    options: Options,
    scratch: Path | None,
    advance: Callable[[], object],
    fisher: Mapping[str, Fisher] | None = None,
) -> Calibrated:
    """Quantize a model's linears, embedding and head, and find the static ranges of the linears' inputs.

    The KV cache is quantized throughout; inputs are not, whatever the scheme says.

    Args:
        model: float32 causal LM; its linears' weights are replaced by the quantized ones.
        tokens: int64 [sequences, length]. valid: bool of the same shape; other positions are not looked at.
        scratch: folder that finished layers are kept in, and taken from, so that memory need not hold them; None:
            nowhere.
        advance: called after each layer.
        fisher: of the linears whose errors it weighs, for methods that use it; its tokens are these.

    Raises:
        ValueError: the scheme does not fit the model, or a weight or an activation is not finite.
    """
    planned = plan(model, scheme)
    weighted = {linear.name: weights for linear, (weights, _) in planned.items() if weights.bits}
    bad = [name for name in weighted if not bool(model.get_submodule(name).weight.isfinite().all())]
    if bad:
        raise ValueError(f"these weights are not finite: {bad}; is the teacher sound?")
    untie_head(model, embedding_head.with_own_weights(model, scheme, weighted))
    tensors = state(model)
    for name, values in float_tensors(model, set(weighted)).items():
        tensors[name].copy_(values)
    result = QuantizedModel(kv_cache=scheme.kv_cache, schemes=weighted)
    embedding_head.round_embedding(model, weighted, options, result)
    done: list[RoundedLayer] = []
    restore = quantize_cache(model, scheme.kv_cache) if scheme.kv_cache.bits else lambda: None
    try:
        runner = Runner.start(model, tokens, valid, options.batch, options.dtype)
        for index, layer in enumerate(layout.decoder_layers(model)[1]):
            group = [linear for linear in planned if linear.layer == index]
            rounded_layer = RoundedLayer.load(scratch, index, weighted)
            if rounded_layer is None:
                rounded_layer = _quantize_layer(runner, layer, group, weighted, options, fisher or {})
                rounded_layer.save(scratch, index)
                rounded_layer = RoundedLayer.load(scratch, index, weighted) or rounded_layer  # mapped, not held
            rounded_layer.put_into(model, result)
            done.append(rounded_layer)
            _step_on(runner, layer, {linear: planned[linear][1] for linear in group}, result)
            memory.give_back()
            advance()
        embedding_head.round_head(runner, tokens, weighted, options, result)
    finally:
        restore()
    result.floats = float_tensors(model, set(weighted))
    rows = [row for layer in done for row in layer.rows]
    return Calibrated(result, pd.DataFrame(rows), [pair for layer in done for pair in layer.skipped])


def _quantize_layer(
    runner: Runner,
    layer: nn.Module,
    group: list[layout.Linear],
    weighted: dict[str, Weights],
    options: Options,
    fisher: Mapping[str, Fisher],
) -> RoundedLayer:
    """Rescale a layer's weights in place, if the method does, and round them."""
    method = PTQ_METHODS[options.method]
    known = {linear.name: fisher[linear.name] for linear in group if method.uses_fisher and linear.name in fisher}
    tokens = {name: factors.tokens for name, factors in known.items()}
    inputs = runner.gather(layer, group, tokens) if method.needs_inputs or options.measure else {}
    done = RoundedLayer()
    if method.rescaling:
        schemes = {linear.name: weighted.get(linear.name, Weights(0)) for linear in group}
        done.skipped += rescale(runner, layer, group, inputs, schemes, method.rescaling, options.migration)
        prefix = next(name for name, module in runner.model.named_modules() if module is layer) + "."
        floats = float_tensors(layer, {name.removeprefix(prefix) for name in weighted})
        done.floats = {prefix + name: values for name, values in floats.items()}
    for linear in group:
        if linear.name in weighted:
            weight, linear_inputs = runner.model.get_submodule(linear.name).weight, inputs.get(linear.name)
            outputs = known[linear.name].outputs if linear.name in known else None
            hessian = None if linear_inputs is None else linear_inputs.hessian
            rounded = round_weight(linear.name, weight, weighted[linear.name], options, hessian, outputs)
            if options.measure and linear_inputs is not None:
                done.rows.append(_errors(linear, weight, rounded, linear_inputs))
            done.rounded[linear.name] = rounded
    return done


def _errors(linear: layout.Linear, weight: Tensor, rounded: Rounded, inputs: Inputs) -> dict[str, Any]:
    """SQNR (dB) of a weight and of its output, beside those of round to nearest on the same inputs; GPTQ's damping.

    Each token counts by its weight, if it has one. What output channels make up for each other is an error here.
    """
    nearest = rtn(weight, None, rounded.scheme).weight
    return {
        "layer": linear.layer,
        "role": linear.role,
        "name": linear.name,
        "bits": rounded.scheme.bits,
        "weight_sqnr": round(sqnr(weight, rounded.weight), 4),
        "output_sqnr": round(output_sqnr(weight, rounded.weight, inputs.hessian), 4),
        "rtn_weight_sqnr": round(sqnr(weight, nearest), 4),
        "rtn_output_sqnr": round(output_sqnr(weight, nearest, inputs.hessian), 4),
        "damping": rounded.damping,
    }


def _step_on(runner: Runner, layer: nn.Module, group: dict[layout.Linear, Activations], result: QuantizedModel) -> None:
    """Run the quantized layer, and add the quantizers of its linears' inputs to the result."""
    static = {linear: a for linear, a in group.items() if a.bits and not a.dynamic}
    histograms = {linear.name for linear, a in static.items() if a.observer in COUNTING}
    observed = runner.advance(layer, list(group), histograms)
    for linear, activations in group.items():
        if activations.bits:
            dynamic = Quantizer(activations)
            result.inputs[linear.name] = (
                static_quantizer(observed[linear.name], activations) if linear in static else dynamic
            )
