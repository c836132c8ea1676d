"""Codes and values against torch's fake quantization and compressed-tensors."""

from functools import cache

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle import forward as theirs
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.quant.grid import Grid, Step, grouped
from tests.unit.quant.drawn import BITS, drawn_zeros, fake_quantize
from tests.unit.quant.strategies import SEEDS, from_tie, grids, inside, matrices, with_ties

FLOAT16, FLOAT32 = torch.float16, torch.float32
many = settings(max_examples=1000)


@st.composite
def on_power_of_two_grids(draw: st.DrawFn) -> tuple[Grid, Tensor, Step]:
    """Values [out, in], half of them exactly between two codes, and power of two scales and zero points [out, 1]."""
    grid, x, seed = draw(grids(BITS)), draw(matrices()), draw(SEEDS)
    exponents = torch.randint(-12, 4, (len(x), 1), generator=torch.Generator().manual_seed(seed))
    scale = 2.0**exponents
    x = x.clamp(-(2.0**20), 2.0**20)  # torch's ops cast to int64 before they clamp
    return grid, with_ties(x, scale, seed), Step(scale, drawn_zeros(grid, seed, len(x), 1))


@given(on_power_of_two_grids())
@many
def test_fake_quantization_is_torch_per_channel_affine_ties_included(drawn: tuple[Grid, Tensor, Step]):
    grid, x, step = drawn
    scale, zero = step.scale[:, 0], step.zero[:, 0].int()
    expected, kept = torch.ops.aten.fake_quantize_per_channel_affine_cachemask(x, scale, zero, 0, *grid.range)
    assert torch.equal(fake_quantize(grid, x, step), expected)
    assert torch.equal(inside(grid, x, step), kept)


@given(on_power_of_two_grids())
@many
def test_fake_quantization_is_torch_per_tensor_affine_ties_included(drawn: tuple[Grid, Tensor, Step]):
    grid, x, step = drawn
    one = Step(step.scale[0, 0], step.zero[0, 0])
    expected = torch.fake_quantize_per_tensor_affine(x, float(one.scale), int(one.zero), *grid.range)
    assert torch.equal(fake_quantize(grid, x, one), expected)


@given(grids(BITS), matrices())
@many
def test_on_any_scale_torch_differs_near_ties_only(grid: Grid, x: Tensor):
    step = grid.step_of(x, FLOAT32)
    scale, zero = step.scale[:, 0], step.zero[:, 0].int()
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, *grid.range)
    quotient = x.double() / step.scale.double()
    near_tie = from_tie(quotient) <= 2.0**-22 * quotient.abs()
    assert torch.equal(fake_quantize(grid, x, step)[~near_tie], expected[~near_tie])


@cache
def arguments(bits: int, symmetric: bool, strategy: str) -> QuantizationArgs:
    group = 4 if strategy == "group" else None
    return QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group, dynamic=strategy == "token"
    )


def for_strategy(strategy: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as compressed-tensors takes it under a strategy, and as we do: values that share a scale last."""
    if strategy == "tensor":
        return x, x.flatten()[None]
    if strategy == "token":
        return x[None], x[None]
    return x, grouped(x, 4 if strategy == "group" else 0)


@pytest.mark.parametrize("strategy", ["channel", "group", "tensor", "token"])
@given(grids(BITS), matrices(multiple=4), SEEDS, st.sampled_from([FLOAT16, FLOAT32]))
@settings(max_examples=600)
def test_codes_and_values_are_those_of_compressed_tensors(
    strategy: str, grid: Grid, x: Tensor, seed: int, dtype: torch.dtype
):
    """Symmetric: bit for bit on any scale, also for values that float32 cannot tell from a tie. Asymmetric: off ties,
    and at exact ties where the zero point is even.

    Its asymmetric codes are signed: ours less 2^(b-1). It adds the zero point before it rounds, we after. So a quotient
    k + 1/2 goes to the even sum there and to the even k here, which under an odd zero point are two codes, one apart;
    and its float32 sum may reach a tie that the quotient only came near.
    """
    their_x, mine = for_strategy(strategy, x)
    step = grid.step_of(mine, dtype if grid.bits <= 8 else FLOAT32)
    mine = with_ties(mine, step.scale, seed)
    their_x = mine.reshape(their_x.shape)
    args = arguments(grid.bits, grid.symmetric, strategy)
    shape = {"channel": (-1, 1), "group": (len(x), -1), "tensor": (1,), "token": (1, -1, 1)}[strategy]
    offset = 0 if grid.symmetric else 2 ** (grid.bits - 1)
    scale, zero = step.scale.reshape(shape), step.zero.reshape(shape) - offset
    their_codes = theirs.quantize(their_x, scale, zero, args).reshape(mine.shape) + offset

    codes = grid.quantize(mine, step)
    quotient = torch.div(mine, step.scale)
    tie = from_tie(quotient) == 0
    sure = from_tie(quotient) > 2.0 ** (grid.bits - 22)
    same = torch.ones_like(tie) if grid.symmetric else sure | (tie & (step.zero % 2 == 0))
    assert torch.equal(codes[same], their_codes[same])
    assert torch.equal(their_codes, (quotient + (step.zero - offset)).round().clamp(*Grid(grid.bits).range) + offset)
    assert ((codes - their_codes).abs() <= 1).all()
    values = theirs.dequantize(their_codes.reshape(their_x.shape) - offset, scale, zero, args=args)
    assert torch.equal(grid.dequantize(their_codes, step).reshape(their_x.shape), values)
    assert torch.equal(theirs.fake_quantize(their_x, scale, zero, args), values)


def test_under_an_odd_zero_point_compressed_tensors_takes_the_other_side_of_a_tie():
    """What the docstring above says, in numbers: 1/2 and 3/2 of a step on a grid whose zero is 7."""
    grid, x = Grid(4, symmetric=False), torch.tensor([[0.5, 1.5, 0.25]])
    step = Step(torch.ones(1, 1), torch.full((1, 1), 7.0))
    their_codes = theirs.quantize(x, step.scale, step.zero - 8, arguments(4, False, "channel")) + 8
    assert their_codes.tolist() == [[8, 8, 7]]
    assert grid.quantize(x, step).tolist() == [[7, 9, 7]]


@given(matrices(), st.sampled_from(BITS))
@many
def test_asymmetric_steps_are_those_of_compressed_tensors(x: Tensor, bits: int):
    """In float32, which it does not round; a zero point within float32 noise of a tie may go either way. It has another
    scale for what is all zero."""
    least, greatest = x.aminmax(dim=-1)
    step = Grid(bits, symmetric=False).step(least, greatest, FLOAT32)
    scale, zero = calculate_qparams(least, greatest, arguments(bits, False, "channel"))
    some = (x != 0).any(dim=1)
    sure = some & (from_tie(-least.clamp(max=0) / step.scale) > 2.0 ** (bits - 22))
    assert torch.equal(step.scale[some], scale[some])
    assert torch.equal(step.zero[sure], zero[sure].float() + 2 ** (bits - 1))
