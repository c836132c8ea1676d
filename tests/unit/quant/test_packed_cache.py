"""A cache of codes gives a model the keys and values, and so the logits, that fake quantization gives it."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from pipeline.knobs.scheme import KVCache
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.packed_cache import PackedCache
from tests.families import FAMILIES, family

NAMES = ["llama", "qwen2", "qwen3", "mistral", "qwen2-window", "gemma", "opt", "gpt-neox", "phi3"]
SLIDING = [name for name in NAMES if FAMILIES[name][1].get("sliding_window")]
SCHEMES = [KVCache(8), KVCache(4), KVCache(4, False, 8), KVCache(3, False, 4), KVCache(2), KVCache(6, False)]
BY_CHANNEL = [KVCache(4, keys="channel", block=4), KVCache(2, False, 4, "channel", 3)]
CASES = [
    *((name, scheme) for name in NAMES for scheme in SCHEMES),
    *((name, scheme) for name in NAMES if name not in SLIDING for scheme in BY_CHANNEL),
]
PIECES = [7, 1, 1, 1, 5, 1, 1, 1, 1, 1]  # tokens a forward: a prompt, single ones, another prompt, single ones


def written(model: PreTrainedModel, tokens: Tensor, cache: Cache) -> list[Tensor]:
    """The logits of each piece."""
    return [
        model(input_ids=piece, past_key_values=cache, use_cache=True).logits for piece in tokens.split(PIECES, dim=1)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "scheme"), CASES, ids=str)
def test_its_logits_are_those_of_fake_quantization_bit_for_bit(
    name: str, scheme: KVCache, dtype: torch.dtype, tokens: Tensor
):
    model = family(name).to(dtype)
    undo = quantize_cache(model, scheme)
    expected = written(model, tokens, DynamicCache(config=model.config))
    whole = model(input_ids=tokens, use_cache=False).logits
    undo()
    in_float = written(model, tokens, DynamicCache(config=model.config))
    quantize_cache(model, scheme, packed=True)
    cache = PackedCache(model.config, scheme)
    for ours, theirs in zip(written(model, tokens, cache), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(
        model(input_ids=tokens, past_key_values=PackedCache(model.config, scheme), use_cache=True).logits, whole
    )
    assert not torch.equal(torch.cat(in_float, dim=1), torch.cat(expected, dim=1))
    assert cache.get_seq_length() == 20


@pytest.mark.parametrize("scheme", [KVCache(4, False, 8), KVCache(4, keys="channel", block=4)], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_generate_writes_the_same_text(scheme: KVCache, options: dict, tokens: Tensor):
    """Beams reorder the cache, and several sequences of a prompt repeat it."""
    model = family("llama")
    options |= {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}
    undo = quantize_cache(model, scheme)
    torch.manual_seed(0)
    expected = model.generate(tokens[:2, :6], past_key_values=DynamicCache(config=model.config), **options)
    undo()
    quantize_cache(model, scheme, packed=True)
    cache = PackedCache(model.config, scheme)
    torch.manual_seed(0)
    assert torch.equal(model.generate(tokens[:2, :6], past_key_values=cache, **options), expected)
    assert cache.get_seq_length() == 17


@pytest.mark.parametrize("scheme", [KVCache(4, False, 8), KVCache(4, keys="channel", block=4)], ids=str)
def test_sequences_can_be_taken_repeated_and_forgotten(scheme: KVCache, tokens: Tensor):
    model = family("llama")
    quantize_cache(model, scheme, packed=True)

    def after(prompt: Tensor, change) -> Tensor:  # type: ignore[no-untyped-def]
        cache = PackedCache(model.config, scheme)
        model(input_ids=prompt, past_key_values=cache, use_cache=True)
        change(cache)
        return model(input_ids=tokens[:2, 10:11], past_key_values=cache, use_cache=True).logits

    two = tokens[:2, :10]
    chosen = after(tokens[:3, :10], lambda cache: cache.batch_select_indices(torch.tensor([2, 0])))
    torch.testing.assert_close(chosen, after(tokens[[2, 0], :10], lambda cache: None))
    repeated = after(tokens[:1, :10], lambda cache: cache.batch_repeat_interleave(2))
    torch.testing.assert_close(repeated, after(tokens[[0, 0], :10], lambda cache: None))
    swapped = after(two, lambda cache: cache.reorder_cache(torch.tensor([1, 0])))
    torch.testing.assert_close(swapped, after(two.flip(0), lambda cache: None))
    cache = PackedCache(model.config, scheme)
    model(input_ids=tokens, past_key_values=cache, use_cache=True)
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length()) == (0, 0)
    again = model(input_ids=two, past_key_values=cache, use_cache=True).logits
    assert torch.equal(
        again, model(input_ids=two, use_cache=True, past_key_values=PackedCache(model.config, scheme)).logits
    )


def test_a_window_holds_no_more_than_it_sees(tokens: Tensor):
    model, scheme = family("mistral"), KVCache(4)
    quantize_cache(model, scheme, packed=True)
    cache = PackedCache(model.config, scheme)
    for piece in tokens.split(PIECES, dim=1):
        model(input_ids=piece, past_key_values=cache, use_cache=True)
        assert all(layer.packed_keys.codes.shape[1] == 5 for layer in cache.layers)  # type: ignore[attr-defined]


def test_what_it_cannot_hold_is_refused(tokens: Tensor):
    with pytest.raises(ValueError, match=r"kv_cache\.bits is 0, a cache in float; take a DynamicCache, or 2 to 8 bits"):
        PackedCache(family("llama").config, KVCache(0))
    with pytest.raises(ValueError, match="holds keys and values, and the model's has LinearAttentionLayer"):
        PackedCache(family("mamba").config, KVCache(4))
    with pytest.raises(ValueError, match=r"kv_cache\.keys is channel, .* a sliding window.*; take token"):
        PackedCache(family("mistral").config, KVCache(4, keys="channel"))
    cache = PackedCache(family("llama").config, KVCache(4))
    assert not cache.is_croppable
    with pytest.raises(ValueError, match="forgets no tokens; decode without drafts, or with a DynamicCache"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="not moved between devices; make it without offloading"):
        cache.offload(0)
