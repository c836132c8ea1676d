import math

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.quant.grid import (
    SCALE_DTYPE,
    channel_scale,
    dequantize,
    grid_range,
    quantize,
    scale_from_absmax,
    sqnr,
)

BITS = [2, 3, 4, 5, 6, 7, 8, 16]
many = settings(max_examples=1000)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """float32 [out, in] of many sizes and magnitudes, some rows all zero."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-4, 4))
    if draw(st.booleans()):
        weight[draw(st.integers(0, rows - 1))] = 0
    return weight


@st.composite
def on_power_of_two_grids(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Values [out, in] and power of two scales [out, 1]; half of the values lie exactly between two codes."""
    weight = draw(weights())
    exponents = st.lists(st.integers(-12, 3), min_size=len(weight), max_size=len(weight))
    scale = torch.tensor([2.0**e for e in draw(exponents)])[:, None]
    ties = (weight / scale).clamp(-(2**20), 2**20).floor() + 0.5
    chosen = torch.rand(weight.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.5
    return torch.where(chosen, ties * scale, weight), scale


@given(on_power_of_two_grids(), st.sampled_from(BITS))
@many
def test_fake_quantization_is_torch_per_channel_affine_ties_included(drawn: tuple[Tensor, Tensor], bits: int):
    """With a power of two for a scale, torch's product with 1 / scale is our quotient."""
    x, scale = drawn
    zero_point = torch.zeros(len(x), dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale[:, 0], zero_point, 0, *grid_range(bits))
    assert torch.equal(dequantize(quantize(x, scale, bits), scale), expected)


@given(weights(), st.sampled_from(BITS))
@many
def test_on_any_scale_torch_differs_at_ties_only(x: Tensor, bits: int):
    scale = channel_scale(x, bits)
    zero_point = torch.zeros(len(x), dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale[:, 0], zero_point, 0, *grid_range(bits))
    differs = dequantize(quantize(x, scale, bits), scale) != expected
    exact = x.double() / scale.double()
    is_tie = (exact - exact.floor() - 0.5).abs() <= 2.0**-22 * exact.abs()
    assert not (differs & ~is_tie).any()


@given(weights(), st.sampled_from(BITS))
@many
def test_codes_and_values_are_those_of_compressed_tensors(x: Tensor, bits: int):
    """On any scale, also for values that float32 cannot tell from a tie."""
    scale = channel_scale(x, bits)
    x = torch.cat([x, ((x / scale).floor() + 0.5) * scale], dim=1)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy=QuantizationStrategy.CHANNEL)
    codes = their_quantize(x, scale, torch.zeros_like(scale), args)
    assert torch.equal(quantize(x, scale, bits), codes)
    assert torch.equal(dequantize(codes, scale), their_dequantize(codes, scale, args=args))


@given(st.sampled_from(BITS), st.integers(0, 0x7BFF - 0x0400), st.integers(0, 2**32))
@many
def test_codes_survive_dequantization(bits: int, offset: int, seed: int):
    """For every code and any normal float16 scale, quantize(dequantize(q)) == q."""
    scale = torch.tensor(np.uint16(0x0400 + offset).view(np.float16).item())
    low, high = grid_range(bits)
    every = torch.arange(low, high + 1).float()
    codes = (
        every if bits <= 8 else every[torch.randint(len(every), (512,), generator=torch.Generator().manual_seed(seed))]
    )
    assert torch.equal(quantize(dequantize(codes, scale), scale, bits), codes)


@given(weights(), st.sampled_from(BITS))
@many
def test_scales_are_absmax_over_the_greatest_code_in_float16(x: Tensor, bits: int):
    scale = channel_scale(x, bits)
    absmax = x.abs().amax(dim=1).numpy()
    expected = (absmax / np.float32(2 ** (bits - 1) - 1)).astype(np.float16)
    least_normal = np.float16(2.0**-14)
    expected = np.where(absmax == 0, np.float16(1), np.maximum(expected, least_normal))
    assert np.array_equal(scale[:, 0].numpy(), expected.astype(np.float32))
    assert torch.equal(scale.to(SCALE_DTYPE).float(), scale)


@given(weights(), st.sampled_from([b for b in BITS if b <= 8]))
@many
def test_a_min_max_scale_clips_nothing(x: Tensor, bits: int):
    codes = torch.round(x.double() / channel_scale(x, bits).double())
    assert codes.abs().max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", BITS)
def test_the_grid_is_that_of_a_signed_integer(bits: int):
    assert grid_range(bits) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if bits in (8, 16):
        info = torch.iinfo({8: torch.int8, 16: torch.int16}[bits])
        assert grid_range(bits) == (info.min, info.max)


def test_ties_round_to_even_and_what_is_outside_is_clamped():
    x = torch.tensor([-9.0, -8.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.5, 100.0])
    assert quantize(x, torch.tensor(1.0), 4).tolist() == [-8, -8, -2, -2, 0, 0, 2, 2, 7, 7]


def test_rows_of_zeros_get_scale_one_and_stay_zero():
    weight = torch.zeros(2, 3)
    assert channel_scale(weight, 4).tolist() == [[1.0], [1.0]]
    assert torch.equal(dequantize(quantize(weight, channel_scale(weight, 4), 4), channel_scale(weight, 4)), weight)


def test_scales_that_vanish_in_float16_become_its_least_normal_number():
    tiny = torch.tensor([[1e-12, -1e-12]])
    assert channel_scale(tiny, 4).item() == 2.0**-14
    assert scale_from_absmax(torch.tensor(1e-12), 16, torch.float32).item() == np.float32(1e-12) / np.float32(32767)


def test_quantizing_leaves_its_input_alone():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    quantize(weight, channel_scale(weight, 4), 4)
    assert torch.equal(weight, before)


def test_sqnr_is_ten_log_of_signal_over_noise():
    reference = torch.tensor([3.0, 4.0])  # signal 25
    assert sqnr(reference, torch.tensor([3.0, 4.5])) == pytest.approx(10 * math.log10(25 / 0.25))
    assert sqnr(reference, reference) == 200.0
    assert sqnr(torch.zeros(2), reference) == -200.0
    assert sqnr(reference, torch.full((2,), 1e30)) == -200.0
