"""The count of a cache's bytes, beside caches that are there."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from pipeline.knobs.scheme import KVCache
from pipeline.quant.cache_memory import FLOAT, LLAMA_7B, Layer, cache_bytes, shape
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.packed_cache import PackedCache
from tests.families import family
from tests.unit.layouts import every_family

SCHEMES = [
    KVCache(8),
    KVCache(4),
    KVCache(4, False, 8),
    KVCache(3, False),
    KVCache(2, True, 4),
    KVCache(4, keys="channel", block=4),
    KVCache(2, False, 4, "channel", 5),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen2-window", "mistral", "gemma", "opt"])
def test_the_count_is_what_a_packed_cache_holds(name: str, scheme: KVCache, tokens: Tensor):
    if scheme.keys == "channel" and name in ("mistral", "qwen2-window"):
        pytest.skip("refused, see test_families_cache.py")
    model = family(name).to(torch.bfloat16)
    layers = shape(model.config)
    quantize_cache(model, scheme, packed=True)
    cache = PackedCache(model.config, scheme)
    assert cache_bytes(layers, scheme, 0, 3) == cache.nbytes == 0
    length = 0
    for piece in tokens[:3].split([1, 3, 1, 8, 7], dim=1):
        model(input_ids=piece, past_key_values=cache, use_cache=True)
        length += piece.shape[1]
        assert cache_bytes(layers, scheme, length, 3) == cache.nbytes


@every_family
def test_the_count_in_float_is_what_transformers_holds(name: str, tokens: Tensor):
    model = family(name)
    if name == "mamba":
        with pytest.raises(ValueError, match="MambaForCausalLM keeps LinearAttentionLayer, no keys and values alone"):
            shape(model.config)
        return
    before = model.config.to_dict()
    layers = shape(model.config)
    assert model.config.to_dict() == before
    cache = DynamicCache(config=model.config)
    for piece, length in zip(tokens[:2].split([4, 16], dim=1), (4, 20), strict=True):
        model(input_ids=piece, past_key_values=cache, use_cache=True)
        held = sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values))
        assert cache_bytes(layers, FLOAT, length, 2, torch.float32) == held


def test_llama_7b_has_the_shape_of_its_config():
    """LlamaConfig's defaults are those of the 7B."""
    config = LlamaConfig(num_hidden_layers=2, vocab_size=8)
    assert shape(config) == list(LLAMA_7B[:2])
    assert len(LLAMA_7B) == LlamaConfig().num_hidden_layers


def test_sixteen_thousand_tokens_of_llama_7b_take_8_gib_and_at_4_bits_2():
    """As in LLM-QAT (2305.17888), which leaves out the scales."""
    assert cache_bytes(LLAMA_7B, FLOAT, 16384) == 8 * 2**30
    scales = 2 * 32 * 16384 * 2  # keys and values, layers, tokens, bytes
    assert cache_bytes(LLAMA_7B, KVCache(4), 16384) == 2 * 2**30 + scales


def test_a_small_cache_counted_by_hand():
    layers = [Layer(keys=6, values=4), Layer(keys=6, values=4, window=3)]
    assert cache_bytes(layers, FLOAT, 5) == 5 * 10 * 2 + 2 * 10 * 2
    assert cache_bytes(layers, KVCache(4), 5, batch=2) == 2 * (5 + 2) * (3 + 2 + 2 + 2)
    assert cache_bytes(layers, KVCache(8, False, 2), 5) == 7 * (6 + 3 * 3 + 4 + 2 * 3)
    by_channel = KVCache(2, False, 0, "channel", 4)
    block, loose, values = 6 * 4 // 4 + 6 * 3, 6 * 2, 1 + 3
    assert cache_bytes(layers[:1], by_channel, 5) == block + loose + 5 * values
