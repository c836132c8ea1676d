"""A calibration of a tiny model, and what its results are compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.driver import Calibrated, calibrate
from pipeline.calibration.fisher import Fisher
from pipeline.calibration.methods import Options
from pipeline.knobs.scheme import Scheme, from_short
from pipeline.models import forward, layout
from pipeline.quant.model import QuantizedModel
from tests import tiny

Q = "model.layers.0.self_attn.q_proj"
W4A16 = from_short("W4A16")


def run(
    tokens: Tensor,
    valid: Tensor,
    method: str = "gptq",
    scheme: Scheme = W4A16,
    model: PreTrainedModel | None = None,
    scratch: Path | None = None,
    advance: Callable[[], object] = lambda: None,
    fisher: dict[str, Fisher] | None = None,
    **options: Any,
) -> Calibrated:
    """Calibrate the tiny Llama, or another model."""
    chosen = Options(**{"method": method, "gptq": {}, "batch": 4, **options})
    model = tiny.llama() if model is None else model
    return calibrate(model, tokens, valid, scheme, chosen, scratch, advance, fisher)


def inputs_of(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What each linear reads at valid positions in a forward of all sequences: [tokens, in]."""
    inputs: dict[str, Tensor] = {}
    handles = forward.on_layer_inputs(
        model,
        layout.linears(model),
        lambda linear, x: inputs.update({linear.name: x.flatten(0, -2)[valid.flatten()]}),
    )
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


def with_layers_quantized(model: PreTrainedModel, quantized: QuantizedModel, below: int) -> PreTrainedModel:
    """A float model with float16 embeddings and norms, and quantized weights in the layers before `below`."""
    for name, values in quantized.floats.items():
        model.get_parameter(name).copy_(values)
    for linear in layout.linears(model):
        if linear.layer < below and linear.name in quantized.codes:
            model.get_submodule(linear.name).weight.copy_(quantized.weight(linear.name))
    return model


def tensors(model: QuantizedModel) -> dict[str, Tensor]:
    """All tensors of a quantized model by part and name."""
    parts = {part: getattr(model, part) for part in ("codes", "latent", "floats")}
    parts["scale"] = {name: step.scale for name, step in model.steps.items()}
    parts["zero"] = {name: step.zero for name, step in model.steps.items()}
    return {f"{part} of {name}": values for part, named in parts.items() for name, values in named.items()}


def differing(quantized: QuantizedModel, expected: QuantizedModel) -> list[str]:
    """What of two models is not the same, tensors to the last bit and by their types."""
    ours, theirs = tensors(quantized), tensors(expected)
    both = ours.keys() & theirs.keys()
    unequal = {x for x in both if ours[x].dtype != theirs[x].dtype or not torch.equal(ours[x], theirs[x])}
    fields = {x for x in ("inputs", "kv_cache", "schemes") if getattr(quantized, x) != getattr(expected, x)}
    return sorted((ours.keys() ^ theirs.keys()) | unequal | fields)


def is_bare(model: PreTrainedModel) -> bool:
    """Whether nothing of a calibration is left on the model."""
    hooked = any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    return not hooked and "permafrost" not in model.config._attn_implementation
