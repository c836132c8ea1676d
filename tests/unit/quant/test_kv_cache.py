"""Fake-quantized keys and values against a plain loop over tokens and groups."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.knobs.scheme import KVCache
from pipeline.quant.grid import Grid
from pipeline.quant.kv_cache import fake_quantize, fake_quantize_channels
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, random


def looped(x: Tensor, scheme: KVCache) -> Tensor:
    """Token by token: the values of its heads one after the other, group by group."""
    grid, out = Grid(scheme.bits, scheme.symmetric), torch.full_like(x, torch.nan)
    batch, heads, tokens, size = x.shape
    group = scheme.group or heads * size
    for b in range(batch):
        for t in range(tokens):
            values = torch.cat([x[b, h, t] for h in range(heads)])
            parts = []
            for start in range(0, heads * size, group):
                part = values[start : start + group].float()
                step = grid.step(part.min(), part.max())
                parts.append(grid.dequantize(grid.quantize(part, step), step))
            for h, head in enumerate(torch.cat(parts).split(size)):
                out[b, h, t] = head.to(x.dtype)
    return out


@given(
    SEEDS,
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.sampled_from([2, 4, 8])),
    st.sampled_from(WEIGHT_BITS),
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=400)
def test_each_token_or_group_has_its_own_grid(
    seed: int, shape: tuple[int, int, int, int], bits: int, symmetric: bool, halvings: int, dtype: torch.dtype
):
    """Groups run over the heads of a token, and may hold several heads or a part of one."""
    width = shape[1] * shape[3]
    scheme = KVCache(bits, symmetric, 0 if halvings == 4 or width % 2**halvings else width // 2**halvings)
    x = (random(seed, *shape) * torch.logspace(-2, 2, shape[2])[:, None]).to(dtype)
    x[0, :, 0, 0] = 0
    quantized = fake_quantize(x, scheme)
    assert quantized.dtype == dtype
    assert torch.equal(quantized, looped(x, scheme))


@pytest.mark.parametrize("group", [2, 4, 8])
def test_a_group_that_divides_a_head_lies_in_one(group: int):
    """As in the papers, whose groups are of a head's own values."""
    scheme, x = KVCache(4, symmetric=False, group=group), random(0, 2, 3, 5, 8)
    alone = [fake_quantize(head, scheme) for head in x.split(1, dim=1)]
    assert torch.equal(fake_quantize(x, scheme), torch.cat(alone, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", [KVCache(2, False, 0, "channel", 4), KVCache(5, True, 8, "channel", 3)], ids=str)
def test_each_channel_of_a_block_has_its_own_grid(scheme: KVCache, dtype: torch.dtype):
    """Symmetric and asymmetric, beside a loop; the group is of values alone."""
    grid, keys = Grid(scheme.bits, scheme.symmetric), random(0, 2, 3, 2 * scheme.block, 5).to(dtype)
    keys[:, :, :, 2] = 40 * keys[:, :, :, 2].abs()  # a channel like those that keys have
    expected = torch.full_like(keys, torch.nan)
    for b, h, c in itertools.product(range(2), range(3), range(5)):
        for start in (0, scheme.block):
            part = keys[b, h, start : start + scheme.block, c].float()
            step = grid.step(part.min(), part.max())
            expected[b, h, start : start + scheme.block, c] = grid.dequantize(grid.quantize(part, step), step).to(dtype)
    assert torch.equal(fake_quantize_channels(keys, scheme), expected)


@pytest.mark.parametrize("scheme", [KVCache(4), KVCache(8, symmetric=False), KVCache(2, group=4)])
def test_the_gradient_is_the_identity(scheme: KVCache):
    x, upstream = random(0, 2, 2, 3, 8).requires_grad_(), random(1, 2, 2, 3, 8)
    quantized = fake_quantize(x, scheme)
    quantized.backward(upstream)
    assert torch.equal(x.grad, upstream)
    assert not torch.equal(quantized, x)


@pytest.mark.parametrize("scheme", [KVCache(4), KVCache(3, symmetric=False, group=8)])
def test_a_token_does_not_depend_on_the_others(scheme: KVCache):
    """So that a prefill and token by token generation see the same keys and values."""
    x = random(0, 1, 2, 5, 8)
    together = fake_quantize(x, scheme)
    for t in range(5):
        assert torch.equal(together[:, :, t : t + 1], fake_quantize(x[:, :, t : t + 1], scheme))


def test_zeros_stay_zero():
    assert torch.equal(fake_quantize(torch.zeros(1, 2, 3, 4), KVCache(4, symmetric=False)), torch.zeros(1, 2, 3, 4))
