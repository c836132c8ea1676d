"""Heads of which something is left to do after, told apart from plain ones whatever the weights are."""

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.knobs.scheme import Activations
from pipeline.models import forward
from pipeline.quant.activations import Quantizer, quantize_inputs
from tests import tiny
from tests.families import FAMILIES, family
from tests.unit.corpus.test_decoding import SHAPE


def made(config: str, deviation: float, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = SHAPE | {"initializer_range": deviation} | options
    model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**shape), dtype=dtype)
    return model.eval().requires_grad_(False)


AFTER = {
    "a cap": ("Gemma2Config", {"head_dim": 16, "final_logit_softcapping": 30.0}),
    "a wide cap": ("Gemma2Config", {"head_dim": 16, "final_logit_softcapping": 5000.0}),
    "a cap that is always there": ("NanoChatConfig", {}),
    "a divisor": ("GraniteConfig", {"logits_scaling": 8.0}),
    "a factor": ("CohereConfig", {"logit_scale": 0.0625}),
    "a factor near 1": ("CohereConfig", {"logit_scale": 1.01}),
}


@pytest.mark.parametrize("deviation", [0.001, 0.02, 0.2, 1.0])
@pytest.mark.parametrize("name", AFTER)
def test_what_a_model_does_to_its_logits_is_seen_whatever_its_weights(name: str, deviation: float):
    config, options = AFTER[name]
    with pytest.raises(ValueError, match="changes its logits after the head") as error:
        forward.head_weight(made(config, deviation, **options))
    numbers = re.search(r"the head gives (\S+), the model gives (\S+)$", str(error.value))
    assert numbers[1] != numbers[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cap_is_seen_in_few_bits_and_a_plain_head_is_taken(dtype: torch.dtype):
    with pytest.raises(ValueError, match="changes its logits after the head"):
        forward.head_weight(made("Gemma2Config", 0.02, dtype, head_dim=16))
    model = tiny.llama().to(dtype)
    assert forward.head_weight(model) is model.lm_head.weight


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("Gemma2Config", {"head_dim": 16, "final_logit_softcapping": None}),
        ("GraniteConfig", {"logits_scaling": 1.0}),
        ("CohereConfig", {"logit_scale": 1.0}),
    ],
)
def test_the_same_kinds_without_it_are_plain(config: str, options: dict[str, Any]):
    model = made(config, 0.2, **options)
    assert forward.head_weight(model) is model.lm_head.weight


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_head_is_plain(name: str):
    model = family(name)
    assert forward.head_weight(model) is model.get_output_embeddings().weight


def test_what_the_head_reads_is_looked_at_too():
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
    scaled, plain = (
        made("MiniCPM3Config", 0.2, num_key_value_heads=4, dim_model_base=size, **latent) for size in (16, 32)
    )
    with pytest.raises(ValueError, match="MiniCPM3ForCausalLM changes its hidden states before the head"):
        forward.head_weight(scaled)
    assert forward.head_weight(plain) is plain.lm_head.weight


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match="the head of PhiForCausalLM has a bias"):
        forward.head_weight(made("PhiConfig", 0.2))


def test_a_head_whose_input_is_quantized_is_plain():
    model = tiny.llama()
    quantize_inputs(model, {"lm_head": Quantizer(Activations(4, dynamic=True))})
    assert forward.head_weight(model) is model.lm_head.weight


def test_the_model_is_left_as_it_was(tokens: Tensor):
    model = tiny.llama()
    before = model(input_ids=tokens).logits
    forward.head_weight(model)
    assert torch.equal(model(input_ids=tokens).logits, before)
    assert not model.lm_head._forward_pre_hooks
