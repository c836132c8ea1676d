"""The tiny model in many schemes, rounded to nearest: what is exported."""

from functools import cache

import torch

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights, from_short
from pipeline.quant.model import QuantizedModel
from tests import tiny

Q = "model.layers.0.self_attn.q_proj"
HEAD = Weights(8, group=16)
OVERRIDES = (
    Override("model.layers.0.*", weights=Weights(8)),
    Override("down", weights=Weights(3, group=16), activations=Activations(8, dynamic=True)),
    Override("v", weights=Weights(0), activations=Activations(0)),
)
SCHEMES = {
    **{f"W{bits}": from_short(f"W{bits}A16") for bits in range(2, 9)},
    "groups": from_short("W4g16A8KV4"),
    "mixed": Scheme(Weights(4), Activations(8, symmetric=False), KVCache(4, group=4), OVERRIDES, head=HEAD),
    "channels": Scheme(Weights(4), kv_cache=KVCache(3, symmetric=False, group=8, keys="channel", block=4)),
    "head": Scheme(Weights(2), head=HEAD),
    "embedding": Scheme(Weights(4), embedding=Weights(6)),
    "blocks": from_short("W4A16E8H6"),
    "vocabulary": from_short("W4A16E8g16H6"),
    "asymmetric": Scheme(
        Weights(3, symmetric=False, group=8), Activations(8, symmetric=False), KVCache(3, symmetric=False), ()
    ),
}


@cache
def quantized(scheme: str) -> QuantizedModel:
    """The tiny model, rounded to nearest."""
    tokens = torch.randint(3, 259, (6, 20), generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    options = Options("mse", {}, batch=6, measure=False)
    return calibrate(tiny.llama(), tokens, valid, SCHEMES[scheme], options, None, lambda: None).model
