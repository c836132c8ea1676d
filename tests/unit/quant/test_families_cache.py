"""Every model family with a quantized KV cache, and those whose attention has none to lend."""

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pipeline.calibration.plan import plan
from pipeline.knobs.scheme import KVCache, from_short
from pipeline.quant.kv_cache import quantize_cache
from tests.families import family
from tests.unit.layouts import NO_CACHE, attention_states, moved, with_cache


def generated(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The logits of token after token, keys and values out of a cache."""
    cache, logits = DynamicCache(config=model.config), []
    for token in tokens.split(1, dim=1):
        logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


@with_cache
@pytest.mark.parametrize("scheme", [KVCache(4), KVCache(4, False), KVCache(4, True, 8), KVCache(4, False, 4)], ids=str)
def test_prefill_and_generation_see_the_same_quantized_keys_and_values(name: str, scheme: KVCache, tokens: Tensor):
    """In float64: float32's noise moves a value across a tie now and then, and that moves the logits."""
    model = family(name).double()
    before = model(input_ids=tokens, use_cache=False).logits
    undo = quantize_cache(model, scheme)
    prefill = model(input_ids=tokens, use_cache=False).logits
    assert moved(generated(model, tokens), prefill) < 1e-5
    assert moved(model(input_ids=tokens[:, :8], use_cache=False).logits, prefill[:, :8]) < 1e-5  # causal
    assert moved(prefill, before) > 0.01
    undo()
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before)


@with_cache
def test_keys_and_values_are_quantized_as_the_cache_holds_them(name: str, tokens, monkeypatch):
    """At 8 bits and a scale a token, 1 + 2 * 127 steps span what the attention reads."""
    model = family(name)
    with attention_states(name, model, monkeypatch) as states:
        model(input_ids=tokens, use_cache=False)
    model = family(name)
    quantize_cache(model, KVCache(8))
    reads: dict[str, Tensor] = {}

    def kernel(query: Tensor, key: Tensor, value: Tensor, **kwargs: object) -> Tensor:
        reads.setdefault("k", key)
        reads.setdefault("v", value)
        return original(query, key, value, **kwargs)

    original = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", kernel)
    model(input_ids=tokens, use_cache=False)
    for role in "kv":
        by_token = states[role].transpose(1, 2).flatten(2)  # (batch, tokens, heads * head_dim)
        scale = (by_token.abs().amax(dim=-1, keepdim=True) / 127).half().float()
        expected = ((by_token / scale).round().clamp(-128, 127) * scale).view(
            *by_token.shape[:2], *states[role].shape[1::2]
        )
        by_head = reads[role].transpose(1, 2)
        queries = by_head.shape[2] // states[role].shape[1]  # heads that share a key head, of which one is looked at
        by_head = by_head[:, :, ::queries]
        torch.testing.assert_close(by_head, expected)


@pytest.mark.parametrize("name", NO_CACHE)
def test_a_model_that_lends_no_attention_is_told_so(name: str, tokens: Tensor):
    model = family(name)
    before = model(input_ids=tokens).logits
    kind = type(model).__name__
    with pytest.raises(
        ValueError, match=f"{kind} has no attention whose keys and values can be quantized; set kv_cache.bits"
    ):
        quantize_cache(model, KVCache(4))
    with pytest.raises(ValueError, match=f"the scheme does not fit {kind}:\n.*set kv_cache.bits to 0"):
        plan(model, from_short("W4KV4"))
    assert torch.equal(model(input_ids=tokens).logits, before)
