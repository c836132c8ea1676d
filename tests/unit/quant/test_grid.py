"""The grid against torch's fake-quantize ops, compressed-tensors and numpy.

Torch multiplies by 1 / scale where we divide, so the two agree bit for bit, ties included, on powers of two; on other
scales they may differ where the quotient lies within float32 noise of a tie, and there only.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.quant.grid import Grid, Step, grouped, sqnr
from tests.unit.quant.drawn import BITS, drawn_zeros, fake_quantize
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, grids, inside, matrices, random

FLOAT16, FLOAT32 = torch.float16, torch.float32
many = settings(max_examples=1000)


@given(grids(BITS), matrices(), st.sampled_from([FLOAT16, FLOAT32]))
@many
def test_a_step_is_the_formula_in_numpy(grid: Grid, x: Tensor, dtype: torch.dtype):
    """absmax / (2^(b-1) - 1), or (greatest - least) / (2^b - 1) with 0 in between, rounded, among float16's subnormal
    numbers up; and round(-least / scale), which a scale rounded down may carry one past the grid."""
    kind = np.float16 if dtype == FLOAT16 else np.float32
    low, high = np.minimum(x.numpy().min(axis=1), 0), np.maximum(x.numpy().max(axis=1), 0)
    codes = np.float32(2 ** (grid.bits - 1) - 1 if grid.symmetric else 2**grid.bits - 1)
    exact = (np.maximum(-low, high) if grid.symmetric else high - low) / codes
    expected = np.maximum(exact.astype(kind), np.finfo(kind).tiny if kind == np.float32 else kind(0))
    if kind == np.float16:
        rounded_down = (exact < np.finfo(kind).tiny) & (expected < exact)
        expected = np.where(rounded_down, np.nextafter(expected, kind(1)), expected)
    expected = np.where(high == low, kind(1), expected).astype(np.float32)
    step = grid.step_of(x, dtype)
    assert np.array_equal(step.scale[:, 0].numpy(), expected)
    zero = np.zeros_like(low) if grid.symmetric else np.round(-low / expected).clip(0, grid.range[1])
    assert np.array_equal(step.zero[:, 0].numpy(), zero)
    assert torch.equal(step.scale.to(dtype).float(), step.scale)


@given(grids(WEIGHT_BITS), matrices())
@many
def test_a_min_max_grid_errs_by_half_a_step(grid: Grid, x: Tensor):
    """And by what rounding the scale to float16 moves the outermost code: at most 2^-11 of it, or not at all where it
    is rounded up."""
    step = grid.step_of(x)
    error = (fake_quantize(grid, x, step).double() - x.double()).abs() / step.scale.double()
    assert error.max() <= 0.5 + grid.range[1] * 2.0**-11 + 1e-6


@given(matrices(), st.sampled_from(WEIGHT_BITS))
@many
def test_a_symmetric_min_max_grid_clips_nothing(x: Tensor, bits: int):
    grid = Grid(bits)
    assert inside(grid, x, grid.step_of(x)).all()
    assert grid.quantize(x, grid.step_of(x)).abs().max() <= 2 ** (bits - 1) - 1


@given(grids(BITS), st.integers(0x0001, 0x7BFF), st.integers(1, 254), st.booleans(), SEEDS)
@many
def test_codes_survive_dequantization(grid: Grid, half: int, exponent: int, wide: bool, seed: int):
    """quantize(dequantize(q)) == q for every code, on any scale that is a float16, subnormal or not (or a float32 whose
    codes are finite), and any zero point."""
    generator = np.random.default_rng(seed)
    if wide:
        bits = np.uint32(min(exponent, 237) << 23 | int(generator.integers(2**23)))
        scale = bits.view(np.float32)
    else:
        scale = np.uint16(half).view(np.float16).astype(np.float32)
    low, high = grid.range
    codes = torch.arange(low, high + 1).float()
    step = Step(torch.tensor(float(scale)), drawn_zeros(grid, seed))
    assert torch.equal(grid.quantize(grid.dequantize(codes, step), step), codes)


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_codes_survive_dequantization_under_every_zero_point(bits: int):
    grid = Grid(bits, symmetric=False)
    codes, zeros = torch.arange(2.0**bits)[None], torch.arange(2.0**bits)[:, None]
    for scale in (1 / 3, 2.0**-14, 2.0**-24, 65504.0, 1.0):
        step = Step(torch.tensor(scale).half().float(), zeros)
        assert torch.equal(grid.quantize(grid.dequantize(codes, step), step), codes.expand(2**bits, -1))


@pytest.mark.parametrize("bits", BITS)
def test_the_range_is_that_of_an_integer(bits: int):
    assert Grid(bits).range == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert Grid(bits, symmetric=False).range == (0, 2**bits - 1)
    if bits in (8, 16):
        info = torch.iinfo({8: torch.int8, 16: torch.int16}[bits])
        assert Grid(bits).range == (info.min, info.max)


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, symmetric=False)], ids=["symmetric", "asymmetric"])
def test_every_code_of_eight_bits_fits_the_type_that_keeps_it(grid: Grid):
    codes = torch.arange(grid.range[0], grid.range[1] + 1).float()
    assert torch.equal(codes.to(grid.dtype).float(), codes)
    assert grid.dtype.itemsize == 1


def test_ties_round_to_even_and_what_is_outside_is_clamped():
    x = torch.tensor([-9.0, -8.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.5, 100.0])
    step = Step(torch.tensor(1.0), torch.tensor(0.0))
    assert Grid(4).quantize(x, step).tolist() == [-8, -8, -2, -2, 0, 0, 2, 2, 7, 7]
    assert inside(Grid(4), x, step).tolist() == [False, True, True, True, True, True, True, True, False, False]


def test_ties_round_to_even_before_the_zero_point_is_added():
    x = torch.tensor([-9.0, -7.5, -1.5, -0.5, 0.5, 1.5, 2.5, 8.5, 9.0])
    step = Step(torch.tensor(1.0), torch.tensor(7.0))
    assert Grid(4, symmetric=False).quantize(x, step).tolist() == [0, 0, 5, 7, 7, 9, 9, 15, 15]
    assert inside(Grid(4, symmetric=False), x, step).tolist() == [False, False, *[True] * 6, False]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_what_is_all_zero_gets_scale_one_and_stays_zero(bits: int, symmetric: bool):
    """Also beside groups that are not."""
    grid, x = Grid(bits, symmetric), grouped(torch.tensor([[0.0, 0.0, 5.0, -3.0], [0.0, -0.0, 0.0, 0.0]]), 2)
    step = grid.step_of(x)
    assert step.scale[x.abs().amax(dim=-1, keepdim=True) == 0].tolist() == [1.0] * 3
    codes = grid.quantize(x, step)
    assert torch.equal(codes[0, 0], step.zero[0, 0].expand(2))
    assert torch.equal(codes[1], step.zero[1].expand(2, 2))
    assert torch.equal(grid.dequantize(codes, step)[1], torch.zeros(2, 2))


@given(matrices(), st.sampled_from(WEIGHT_BITS), st.sampled_from([-1, 1]))
@settings(max_examples=300)
def test_asymmetric_rows_of_one_sign_use_the_whole_grid_from_zero(x: Tensor, bits: int, sign: int):
    grid, x = Grid(bits, symmetric=False), sign * x.abs()
    step = grid.step_of(x)
    some = (x != 0).any(dim=1) & (step.scale[:, 0] > 2.0**-14)
    top = x.abs().amax(dim=1, keepdim=True) * sign
    zero_code, top_code = (0, grid.range[1]) if sign > 0 else (grid.range[1], 0)
    assert (step.zero[some] == zero_code).all()
    assert (grid.quantize(torch.zeros_like(top), step)[some] == zero_code).all()
    assert (grid.quantize(top, step)[some] == top_code).all()


@pytest.mark.parametrize("bits", BITS)
def test_a_zero_point_is_a_code_also_where_its_scale_was_rounded_down(bits: int):
    grid, least = Grid(bits, symmetric=False), -torch.linspace(0.1, 3, 500)
    step = grid.step(least, torch.zeros(500))
    assert (step.zero <= grid.range[1]).all()
    assert torch.equal(grid.quantize(torch.zeros(500), step), step.zero)
    assert bits != 12 or (-least / step.scale > grid.range[1] + 0.5).any()


@pytest.mark.parametrize("grid", [Grid(2), Grid(8), Grid(4, symmetric=False)])
def test_a_scale_beyond_float16_is_refused(grid: Grid):
    """65520 is the least number that rounds to infinity; the message names the values' size and the dtype."""
    highest = torch.tensor(grid.range[1] * 65519.0)
    assert grid.step(torch.zeros(()), highest).scale == 65504
    with pytest.raises(ValueError, match=r"values up to .* need a scale beyond the range of torch\.float16"):
        grid.step(torch.zeros(2), torch.stack([torch.tensor(1.0), torch.tensor(grid.range[1] * 65520.0)]))
    assert grid.step(torch.zeros(()), torch.tensor(grid.range[1] * 65520.0), FLOAT32).scale == 65520


def test_values_that_are_infinite_are_refused():
    with pytest.raises(ValueError, match="inf"):
        Grid(8).step_of(torch.tensor([1.0, math.inf]), FLOAT32)


@pytest.mark.parametrize("grid", [Grid(4), Grid(8), Grid(16), Grid(4, symmetric=False)])
@pytest.mark.parametrize("dtype", [FLOAT16, FLOAT32])
def test_a_scale_below_the_least_number_is_that_number(grid: Grid, dtype: torch.dtype):
    """Float16's least subnormal number, float32's least normal one."""
    least = 2.0**-24 if dtype == FLOAT16 else torch.finfo(dtype).tiny
    for top in (1e-45, least, grid.range[1] * least * 0.999):
        assert grid.step(torch.tensor(0.0), torch.tensor(top), dtype).scale == least
    assert grid.step(torch.tensor(0.0), torch.tensor(grid.range[1] * least * 1.01), dtype).scale > least


@pytest.mark.parametrize("group", [1, 2, 3, 6, 0])
def test_groups_are_neighbours_in_the_last_dimension(group: int):
    x = torch.arange(24).view(2, 2, 6)
    groups = grouped(x, group)
    size = group or 6
    assert groups.shape == (2, 2, 6 // size, size)
    assert groups.data_ptr() == x.data_ptr()
    for i in range(6 // size):
        assert torch.equal(groups[..., i, :], x[..., i * size : (i + 1) * size])


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantizing_leaves_its_input_alone(symmetric: bool):
    x, grid = random(0, 3, 4), Grid(4, symmetric)
    before = x.clone()
    step = grid.step_of(x)
    codes = grid.quantize(x, step)
    kept = codes.clone()
    grid.dequantize(codes, step)
    grid.quantize_and_tell(x, step)
    assert torch.equal(x, before)
    assert torch.equal(codes, kept)


@given(grids(WEIGHT_BITS), matrices())
@settings(max_examples=200)
def test_a_step_over_the_last_dimension_is_that_of_each_row_in_float16(grid: Grid, x: Tensor):
    step = grid.step_of(x)
    for row, scale, zero in zip(x, *step, strict=True):
        alone = grid.step(row.min(), row.max(), FLOAT16)
        assert (alone.scale, alone.zero) == (scale, zero)


def test_sqnr_is_ten_log_of_signal_over_noise():
    reference = torch.tensor([3.0, 4.0])  # signal 25
    assert sqnr(reference, torch.tensor([3.0, 4.5])) == pytest.approx(10 * math.log10(25 / 0.25))
    assert sqnr(reference, reference) == 200.0
    assert sqnr(torch.zeros(2), reference) == -200.0
    assert sqnr(reference, torch.full((2,), 1e30)) == -200.0
