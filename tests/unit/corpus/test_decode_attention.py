"""Attention over a cache that is made once, against torch's and against a plain forward."""

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from pipeline.corpus.decode_attention import DECODE_ATTENTION, PreallocatedLayer, grouped_attention
from tests import tiny


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_logits_on_the_preallocated_cache_are_those_of_a_full_forward(tokens: Tensor):
    model = tiny.llama()
    expected = model(input_ids=tokens).logits
    model.set_attn_implementation(DECODE_ATTENTION)
    cache = Cache(layers=[PreallocatedLayer(25) for _ in range(2)])
    logits = [model(input_ids=tokens[:, [i]], past_key_values=cache, use_cache=True).logits for i in range(20)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length() == 20
    buffers = {layer.keys.data_ptr() for layer in cache.layers}
    assert buffers == {layer.key_buffer.data_ptr() for layer in cache.layers}


def test_the_preallocated_layer_returns_all_that_was_put_in():
    layer = PreallocatedLayer(6)
    keys, values = random(0, 2, 3, 6, 4), random(1, 2, 3, 6, 4)
    for end in (2, 3, 6):
        begin = layer.get_seq_length()
        cached = layer.update(keys[:, :, begin:end], values[:, :, begin:end])
        assert torch.equal(cached[0], keys[:, :, :end])
        assert torch.equal(cached[1], values[:, :, :end])


@pytest.mark.parametrize("masked", [False, True])
def test_grouped_attention_is_torchs(masked: bool):
    query, key, value = random(0, 2, 6, 1, 8), random(1, 2, 3, 5, 8), random(2, 2, 3, 5, 8)
    mask = torch.tensor([False, True, True, False, True]).expand(2, 1, 1, 5) if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    output, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_grouped_attention_takes_a_mask_a_head_and_narrow_values():
    query, key, value = random(0, 2, 6, 1, 8), random(1, 2, 3, 5, 8), random(2, 2, 3, 5, 4)
    mask = random(3, 2, 6, 1, 5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    output, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, dropout=0.0, sliding_window=4, bias=None)
    torch.testing.assert_close(output, expected.transpose(1, 2))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "of_days_to_come"])
def test_grouped_attention_refuses_what_it_does_not_know(name: str):
    query, key = random(0, 2, 6, 1, 8), random(1, 2, 3, 5, 8)
    with pytest.raises(ValueError, match=f"its attention is called with {name}"):
        grouped_attention(torch.nn.Module(), query, key, key, None, **{name: torch.ones(6)})
