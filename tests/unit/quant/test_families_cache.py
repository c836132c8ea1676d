"""Every model family with a quantized KV cache, and those whose attention has none to lend."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.calibration.plan import plan
from pipeline.knobs.scheme import KVCache, Scheme, Weights, from_short
from pipeline.quant import key_channels
from pipeline.quant.kv_cache import fake_quantize, fake_quantize_channels, quantize_cache
from tests.families import family
from tests.unit.layouts import NO_CACHE, attention_states, moved, with_cache

SEEDED = torch.Generator().manual_seed(0)


def generated(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The logits of token after token, keys and values out of a cache."""
    cache, logits = DynamicCache(config=model.config), []
    for token in tokens.split(1, dim=1):
        logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


SCHEMES = [
    KVCache(4),
    KVCache(4, False),
    KVCache(4, True, 8),
    KVCache(4, False, 4),
    KVCache(4, False, 4, "channel", 4),
    KVCache(4, keys="channel", block=3),
]
SLIDING = ("mistral", "qwen2-window")


@with_cache
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_prefill_and_generation_see_the_same_quantized_keys_and_values(name: str, scheme: KVCache, tokens: Tensor):
    """In float64: float32's noise moves a value across a tie now and then, and that moves the logits."""
    if scheme.keys == "channel" and name in SLIDING:
        pytest.skip("refused, see below")
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


@pytest.mark.parametrize("name", SLIDING)
def test_keys_per_channel_are_refused_beside_a_sliding_window(name: str, tokens: Tensor):
    model = family(name)
    before = model(input_ids=tokens).logits
    message = f"kv_cache.keys is channel, and {type(model).__name__} has a sliding window, which moves .*; take token"
    with pytest.raises(ValueError, match=message):
        quantize_cache(model, KVCache(4, keys="channel"))
    scheme = Scheme(Weights(4), kv_cache=KVCache(4, group=5, keys="channel"))
    with pytest.raises(ValueError, match=r"kv_cache\.group 5 does not divide") as caught:
        plan(model, scheme)
    assert "take token" in str(caught.value)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_of_keys_per_channel_a_token_reads_its_own_block_in_float_and_those_before_on_their_grid(tokens: Tensor):
    """Beside an attention that is written out, product by product."""
    model, scheme = family("llama").double(), KVCache(3, False, 4, "channel", 4)
    AttentionInterface.register("written_out", partial(written_out, scheme=scheme))
    AttentionMaskInterface.register("written_out", sdpa_mask)
    model.set_attn_implementation("written_out")
    expected = model(input_ids=tokens, use_cache=False).logits
    quantize_cache(model, scheme)
    assert moved(model(input_ids=tokens, use_cache=False).logits, expected) < 1e-6


def written_out(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scheme: KVCache, **kwargs: object
) -> tuple[Tensor, None]:
    """Softmax over the keys of a query, each from the copy that it is to read."""
    value = fake_quantize(value, scheme)
    rounded, count = fake_quantize_channels(key, scheme), key.shape[2]
    output, shared = torch.zeros_like(query), query.shape[1] // key.shape[1]
    for h in range(query.shape[1]):
        for i in range(count):
            keys = [
                (key if j // scheme.block == i // scheme.block else rounded)[:, h // shared, j] for j in range(i + 1)
            ]
            products = torch.stack([(query[:, h, i] * k).sum(-1) for k in keys], dim=1) * query.shape[3] ** -0.5
            output[:, h, i] = torch.einsum("bj,bjd->bd", products.softmax(dim=1), value[:, h // shared, : i + 1])
    return output.transpose(1, 2), None


def test_gradients_reach_keys_per_channel_as_if_they_were_in_float(tokens: Tensor):
    """Of one layer's keys, beside the straight-through estimate of torch's own operators."""
    scheme, (query, key, value) = KVCache(4, keys="channel", block=4), torch.randn(3, 2, 2, 10, 8, generator=SEEDED)
    results = []
    for on_grid in (partial(fake_quantize_channels, scheme=scheme), partial(straight_through, scheme=scheme)):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        output, _ = key_channels.attention(nn.Module(), *leaves, None, 4, on_grid, packed=False)
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


def straight_through(keys: Tensor, scheme: KVCache) -> Tensor:
    return keys + (fake_quantize_channels(keys.detach(), scheme) - keys).detach() if keys.shape[2] else keys
