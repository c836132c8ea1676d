"""Routers and gates of experts are no linears to quantize: in every mixture of experts that transformers has."""

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.calibration import fisher
from pipeline.models import layout
from pipeline.models.experts import routers
from tests.families import FAMILIES, family
from tests.others import other

EXPERTS = 22  # no other size of these models
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "vocab_size": 300,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "is_moe": True,
}


def built(kind: str) -> nn.ModuleList | None:
    """The layers of a mixture of this kind, on the meta device; None where it is none, or wants more to be built."""
    try:
        known = CONFIG_MAPPING[kind]().get_text_config().to_dict()
        counts = [name for name in COUNTS if name in known]
        if not counts:
            return None
        config = CONFIG_MAPPING[kind](**{name: value for name, value in SMALL.items() if name in known})
        for name in counts:
            setattr(config.get_text_config(), name, EXPERTS)
        with torch.device("meta"):
            return layout.decoder_layers(AutoModelForCausalLM.from_config(config))[1]
    except Exception:  # a kind whose sizes must fit each other in some way of their own
        return None


def test_of_all_mixtures_no_linear_that_chooses_among_experts_is_quantized():
    """What gives a value for each expert, or a single one, chooses or weighs, whatever it is called."""
    mixtures = {kind: layers for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if (layers := built(kind)) is not None}
    assert len(mixtures) >= 25
    chosen = {}
    for kind, layers in mixtures.items():
        linears = {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
        chosen[kind] = routers(layers)
        choosing = {name for name, module in linears.items() if module.out_features in (1, EXPERTS)}
        assert choosing <= chosen[kind], kind
        weights = sum(parameter.numel() for parameter in layers.parameters())
        assert sum(linears[name].weight.numel() for name in chosen[kind]) < 0.05 * weights, kind
        assert not [name for name in chosen[kind] if name.endswith(("gate_proj", "gate_up_proj", "output_gate"))], kind
    assert {"jetmoe", "qwen2_moe", "phimoe", "llama4_text"} <= {kind for kind, names in chosen.items() if names}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_without_experts_has_no_routers(name: str):
    assert routers(layout.decoder_layers(family(name))[1]) == set()


@pytest.mark.parametrize("name", ["qwen2-moe", "jetmoe", "phimoe"])
def test_the_linears_of_a_mixture_and_their_fisher_information(name: str, tokens: Tensor, valid: Tensor):
    """Phi-3.5's router returns a tuple."""
    model = other(name)
    linears = layout.linears(model)
    assert not [linear.name for linear in linears if "router" in linear.name or linear.name.endswith("expert_gate")]
    names = {linear.name for linear in linears}
    if layout.head(model) is None or getattr(model.get_output_embeddings(), "bias", None) is not None:
        model.lm_head.bias = None  # of Phi-3.5, whose logits are no plain product
    sampled = valid & (torch.arange(tokens.shape[1]) > 0)  # all that follows the first token
    information = fisher.fisher(model, tokens, valid, sampled, 3, "float32", names, lambda: None)
    assert {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)} & names <= information.keys()


def test_a_linear_that_returns_no_tensor_is_left_out_of_fishers_information(tokens: Tensor, valid: Tensor):
    model = other("starcoder2")
    names = {linear.name for linear in layout.linears(model)}
    odd = model.model.layers[0].mlp.c_fc

    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return super().forward(x), None

    odd.__class__ = Pair
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.c_proj(mlp.act(mlp.c_fc(x)[0]))
    sampled = valid & (torch.arange(tokens.shape[1]) > 0)  # all that follows the first token
    information = fisher.fisher(model, tokens, valid, sampled, 3, "float32", names, lambda: None)
    assert information.keys() == names - {"model.layers.0.mlp.c_fc"}
