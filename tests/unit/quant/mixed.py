"""A quantized model of several schemes."""

import torch
from torch import Tensor

from pipeline.knobs.scheme import HEAD, Activations, KVCache, Override, Scheme, Weights
from pipeline.models import layout
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel, float_tensors, untie_head
from pipeline.rounding.methods import rtn
from tests import tiny

STATIC, DYNAMIC = Activations(8), Activations(4, symmetric=False, dynamic=True)
MIXED = Scheme(
    Weights(4),
    STATIC,
    KVCache(4, symmetric=False, group=8),
    (
        Override("down", Weights(3, symmetric=False, group=16), DYNAMIC),
        Override("q", Weights(8, group=8), Activations(16, False, observer="percentile", percentile=99.9)),
        Override("model.layers.1.mlp.gate_proj", Weights(0), Activations(0)),
        Override("lm_head", Weights(8, symmetric=False)),
    ),
)


def built() -> QuantizedModel:
    """The tiny model rounded to nearest under a mixed scheme, and its inputs' grids, those of static ones made up."""
    model, made = tiny.llama(), QuantizedModel(kv_cache=MIXED.kv_cache)
    for name, role in [(linear.name, linear.role) for linear in layout.linears(model)] + [("lm_head", HEAD)]:
        made_of, activations = MIXED.of(name, role)
        if made_of.bits:
            rounded = rtn(model.get_submodule(name).weight, None, made_of)
            made.schemes[name], made.codes[name], made.steps[name] = made_of, rounded.codes, rounded.step
            made.latent[name] = rounded.latent.clone()
        if activations.bits:
            made_up = Step(torch.tensor(3e-3), torch.tensor(0.0 if activations.symmetric else 100.0))
            made.inputs[name] = Quantizer(activations, None if activations.dynamic else made_up)
    untie_head(model, set(made.codes))
    made.floats = float_tensors(model, set(made.codes))
    return made


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
