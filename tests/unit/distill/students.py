"""Students of tiny models, and what of them learns: families, schemes and freeze policies that tests go through."""

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.distill.freeze import Frozen, frozen_rows
from pipeline.distill.prepare import prepare
from pipeline.distill.student import Learns, Student
from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights, from_short
from pipeline.models import layout
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.families import family

Q = "model.layers.0.self_attn.q_proj"
FINE = Scheme(Weights(3, symmetric=False, group=8), Activations(8, symmetric=False), KVCache(4, group=4))
MIXED = Scheme(
    Weights(4),
    Activations(8, dynamic=True),
    overrides=(
        Override("*.layers.0.*", weights=Weights(8, group=16)),
        Override("down", weights=Weights(0)),
    ),
    head=Weights(8, symmetric=False),
)
SCHEMES = {
    "W4A16": from_short("W4A16"),
    "fine": FINE,
    "mixed": MIXED,
    "W4": Scheme(Weights(4)),
    "groups": Scheme(Weights(3, symmetric=False, group=8)),
}
CASES = [  # family, scheme, freeze policy: of Phi-3 and GPT-NeoX a part of the fused projections is frozen
    ("llama", "W4A16", "ov"),
    ("llama", "fine", "mlp"),
    ("llama", "mixed", "qkv"),
    ("phi3", "W4A16", "ov"),
    ("phi3", "fine", "qk"),
    ("gpt-neox", "fine", "v"),
    ("gpt-neox", "mixed", "ov"),
]
every_case = pytest.mark.parametrize(("name", "scheme", "policy"), CASES)
both_modes = pytest.mark.parametrize("mode", ["static", "minmax"])


def float_model(name: str) -> PreTrainedModel:
    return tiny.llama() if name == "llama" else family(name)


@cache
def start_of(name: str, scheme: str) -> QuantizedModel:
    """The calibrated model. Training changes latent weights: `student` copies them."""
    tokens = torch.randint(3, 259, (6, 20), generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    options = Options("gptq", {}, batch=6, measure=False)
    return calibrate(float_model(name), tokens, valid, SCHEMES[scheme], options, None, lambda: None).model


def frozen_of(name: str, start: QuantizedModel, policy: str) -> Frozen:
    return frozen_rows(policy, [linear for linear in layout.linears(float_model(name)) if linear.name in start.codes])


def student(
    name: str = "llama",
    scheme: str = "W4A16",
    policy: str = "ov",
    mode: str = "static",
    norms: bool = True,
    dtype: torch.dtype = torch.float32,
    embeddings: bool = False,
    **changes: object,
) -> Student:
    start = start_of(name, scheme)
    latent = {key: values.clone() for key, values in start.latent.items()}
    own = dataclasses.replace(start, **{"latent": latent, **changes})
    return prepare(float_model(name), own, frozen_of(name, start, policy), Learns(mode, norms, embeddings), dtype)


def learn(made: Student, tokens: Tensor, lr: float = 0.05, steps: int = 3) -> None:
    """A few AdamW steps of cross-entropy."""
    optimizer = torch.optim.AdamW(made.masters.values(), lr=lr)
    for _ in range(steps):
        made.model(input_ids=tokens, labels=tokens).loss.backward()
        made.collect_gradients()
        optimizer.step()
        made.refresh()


def free_rows(name: str, scheme: str, policy: str) -> dict[str, Tensor]:
    """Which rows of each linear in the decoder learn: bool [out]."""
    start = start_of(name, scheme)
    frozen = frozen_of(name, start, policy)
    rows = {}
    for linear, codes in start.codes.items():
        if linear in start.latent:
            free = torch.ones(len(codes), dtype=torch.bool)
            if linear in frozen:
                free[slice(None) if frozen[linear] is None else frozen[linear]] = False
            rows[linear] = free
    return rows
