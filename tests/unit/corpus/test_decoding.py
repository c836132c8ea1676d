"""Decoding against a plain forward over the same tokens, on logits, for every family and for what is odd in others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.corpus import decoding
from pipeline.corpus.decode_attention import PreallocatedLayer
from tests import tiny
from tests.families import FAMILIES, family

OURS, OWN, NONE = decoding.WAYS
SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 6}  # shorter than the texts here
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
DEEPSEEK = LATENT | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATES = {"mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # the way in which each writes, its config, what is its own
    "a cap in attention": (OWN, "Gemma2Config", WINDOW | {"head_dim": 16, "attn_logit_softcapping": 0.5}),
    "attention sinks": (OWN, "GptOssConfig", WINDOW | {"head_dim": 16, "num_local_experts": 4}),
    "values narrower than keys": (OURS, "DeepseekV3Config", DEEPSEEK),
    "values narrower than keys, dense": (OURS, "MiniCPM3Config", LATENT | {"num_key_value_heads": 4}),
    "windows now and then": (OURS, "Gemma3TextConfig", WINDOW | {"head_dim": 16, "sliding_window_pattern": 2}),
    "chunks": (
        OURS,
        "Llama4TextConfig",
        {
            "head_dim": 8,
            "attention_chunk_size": 6,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "alibi": (OURS, "MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "convolutions": (OWN, "Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64}),
    "delta rule, experts": (OWN, "Qwen3NextConfig", DELTA | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "delta rule": (OWN, "Qwen3_5TextConfig", DELTA),
    "states beside attention": (
        OWN,
        "FalconH1Config",
        STATES | {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    ),
    "states between attention": (
        OWN,
        "JambaConfig",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "layers without attention": (  # whose states and whose scan are not quite alike
        NONE,
        "NemotronHConfig",
        {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": 3,
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "a cache that is not right from the first token": (
        NONE,
        "BambaConfig",
        STATES | {"attn_layer_indices": [1], "mamba_n_heads": 8},
    ),
    "states in its own modules": (
        NONE,
        "RecurrentGemmaConfig",
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6, "head_dim": 8},
    ),
    "no cache at all": (NONE, "RwkvConfig", {}),
}


def kind(name: str) -> PreTrainedModel:
    _, config, options = KINDS[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**(SHAPE | options))
    return AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval().requires_grad_(False)


def apart(model: PreTrainedModel, way: str, tokens: Tensor) -> float:
    """The greatest difference of logits that are written in a way from those of a plain forward, by their range: a
    token read at a time, and several, first and behind others."""
    plain, length = model(input_ids=tokens, use_cache=False).logits, tokens.shape[1]
    differences = []
    for ends in (range(1, length + 1), (5, 6, 15, 19, length)):
        with torch.inference_mode(), decoding.WAYS[way](model, length) as step:
            differences += [(step(tokens[:, :end]) - plain[:, end - 1]).abs().max() for end in ends]
    return float(max(differences) / (plain.max() - plain.min()))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_writes_by_the_logits_of_a_plain_forward(name: str, tokens: Tensor):
    way = decoding.choose(family(name), 20)
    assert way.name == (OWN if name == "mamba" else OURS)
    assert apart(family(name), way.name, tokens) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_what_is_odd_is_written_right_if_slower(name: str, tokens: Tensor):
    model = kind(name)
    before = model.config._attn_implementation
    way = decoding.choose(model, 20)
    assert way.name == KINDS[name][0], way.passed_over
    assert [*way.passed_over] == list(decoding.WAYS)[: [*decoding.WAYS].index(way.name)]
    assert apart(model, way.name, tokens) < 1e-4
    assert model.config._attn_implementation == before


def test_tokens_that_are_known_are_read_in_few_forwards(tokens: Tensor, monkeypatch: pytest.MonkeyPatch):
    """PREFILL of all texts at most; a token at a time where a model keeps more than keys and values."""
    length = tokens.shape[1]
    for name, forwards in (("llama", [length - 1, 1]), ("mamba", [1] * length)):
        model, read = family(name), list[int]()
        handle = model.register_forward_pre_hook(
            lambda _, args, asked, read=read: read.append(asked["input_ids"].shape[1]), with_kwargs=True
        )
        for way in [OWN] if name == "mamba" else [OURS, OWN]:
            read.clear()
            with torch.inference_mode(), decoding.WAYS[way](model, length) as step:
                step(tokens[:, :-1])
                step(tokens)
            assert read == forwards
        handle.remove()
    monkeypatch.setattr(decoding, "PREFILL", 7 * len(tokens) + 1)
    read = []
    model = family("llama")
    model.register_forward_pre_hook(lambda _, __, asked: read.append(asked["input_ids"].shape[1]), with_kwargs=True)
    with torch.inference_mode(), decoding.WAYS[OURS](model, length) as step:
        logits = step(tokens)
    assert read[:-1] == [7] * (length // 7)
    assert torch.allclose(logits, family("llama")(input_ids=tokens).logits[:, -1], atol=1e-5)


def test_a_way_that_reads_several_tokens_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    model = family("llama")
    monkeypatch.setattr(decoding, "WAYS", {OURS: _blind_to_order, NONE: decoding.WAYS[NONE]})
    way = decoding.choose(model, 20)
    assert way.name == NONE
    assert way.passed_over[OURS].endswith(", several read at once")


@contextmanager
def _blind_to_order(model: PreTrainedModel, length: int) -> Iterator[decoding.Step]:
    """Right a token at a time alone."""
    read = 0

    def step(tokens: Tensor) -> Tensor:
        nonlocal read
        new, read = tokens.shape[1] - read, tokens.shape[1]
        logits = model(input_ids=tokens, use_cache=False).logits
        return logits[:, -1] if new == 1 else logits[:, -2]

    yield step


def test_what_ours_does_not_know_is_named():
    assert decoding.choose(kind("a cap in attention"), 20).passed_over == {OURS: "its attention is called with softcap"}
    assert decoding.choose(kind("attention sinks"), 20).passed_over == {OURS: "its attention is called with s_aux"}


def test_a_way_whose_logits_differ_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    """Ours with keys that a token too few has been written to, from the sixth on."""
    update = PreallocatedLayer.update

    def forgetting(layer: PreallocatedLayer, key: Tensor, value: Tensor, *args: object, **kwargs: object):
        keys, values = update(layer, key, value, *args, **kwargs)
        if layer.filled > 5:
            layer.key_buffer[:, :, 2] = 0
        return keys, values

    monkeypatch.setattr(PreallocatedLayer, "update", forgetting)
    way = decoding.choose(tiny.llama(), 20)
    assert way.name == OWN
    assert way.passed_over == {OURS: "its logits differ from a plain forward's at token 6"}


def test_windows_and_chunks_are_passed_by_the_text_that_is_compared():
    model = tiny.llama()
    assert decoding._text(model, 100).shape == (2, decoding.COMPARED)
    assert decoding._text(model, 5).shape == (2, 5)
    model.config.sliding_window = 40
    assert decoding._text(model, 100).shape == (2, 44)
    assert decoding._text(model, 42).shape == (2, 42)
    assert decoding._text(model, 30).shape == (2, decoding.COMPARED)


def test_it_is_compared_in_float32_and_the_model_is_what_it_was():
    model = tiny.llama().to(torch.bfloat16)
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.float()
    before = {name: values.clone() for name, values in [*model.named_parameters(), *model.named_buffers()]}
    dtypes = set()
    handle = model.lm_head.register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    assert decoding.choose(model, 20).name == OURS
    handle.remove()
    assert dtypes == {torch.float32}
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        assert values.dtype == before[name].dtype, name
        assert torch.equal(values, before[name]), name
        assert not values.is_inference(), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_difference_below_the_rounding_of_the_model_s_own_dtype_does_not_slow_it():
    assert decoding.choose(kind("layers without attention").to(torch.bfloat16), 20).name == OWN
    assert decoding.choose(kind("a cap in attention").to(torch.bfloat16), 20).name == OWN
    assert decoding.choose(tiny.llama().to(torch.bfloat16), 20).name == OURS


def test_a_model_that_looks_ahead_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = tiny.llama()
    forward = model.forward

    def ahead(input_ids: Tensor, **kwargs: object) -> object:
        out = forward(input_ids=input_ids, **kwargs)
        out.logits[:, 0, 7] += input_ids[:, -1] / 100
        return out

    monkeypatch.setattr(model, "forward", ahead)
    with pytest.raises(ValueError, match="LlamaForCausalLM changes its predictions with the tokens that come after"):
        decoding.choose(model, 20)


def test_logits_that_are_not_finite_are_refused_before_any_work():
    model = tiny.llama(tie=False)
    model.lm_head.weight[258] = torch.nan
    with pytest.raises(
        ValueError, match=r"logits of LlamaForCausalLM are not finite at token 1 .* is the teacher sound"
    ):
        decoding.choose(model, 20)


def test_a_model_that_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = tiny.llama()
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(7, 64)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot read a text of 12 tokens: "):
        decoding.choose(model, 20)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
