"""Weights by channel and group against a plain loop over rows and groups."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Grid, Step
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, inside, matrices, random, with_ties

some = settings(max_examples=300)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Weights, Tensor]:
    """A scheme and a weight [out, in] that its group divides."""
    group = draw(st.sampled_from([0, 1, 2, 3, 4, 8]))
    weight = draw(matrices(rows=4, columns=16, multiple=group or 1))
    return Weights(draw(st.sampled_from(WEIGHT_BITS)), draw(st.booleans()), group), weight


def step_of(weight: Tensor, scheme: Weights) -> Step:
    """Min-max scales; every second symmetric group's is below zero."""
    scale, zero = weights.weight_step(weight, scheme)
    if scheme.symmetric and scheme.group:
        scale[:, 1::2] *= -1
    return Step(scale, zero)


def looped(x: Tensor, step: Step, scheme: Weights, do: Callable[[Grid, Tensor, Step], Tensor]) -> Tensor:
    """What is done to the values of one group of one row after the other, with their own scale and zero point."""
    out, size = torch.full(x.shape, torch.nan), scheme.group or x.shape[1]
    for row in range(len(x)):
        for n in range(x.shape[1] // size):
            place = slice(n * size, (n + 1) * size)
            mine = Step(step.scale[row, n], step.zero[row, n])
            out[row, place] = do(Grid(scheme.bits, scheme.symmetric), x[row, place], mine).float()
    return out


def clamped(grid: Grid, x: Tensor, step: Step) -> Tensor:
    low, high = sorted((code - float(step.zero)) * float(step.scale) for code in grid.range)
    return x.clamp(low, high)


@given(cases())
@some
def test_each_group_of_each_row_has_its_own_min_max_step(case: tuple[Weights, Tensor]):
    scheme, weight = case
    step = weights.weight_step(weight, scheme)
    grid, size = Grid(scheme.bits, scheme.symmetric), scheme.group or weight.shape[1]
    dtype = grid.scale_dtype(*weight.unflatten(1, (-1, size)).aminmax(dim=-1))  # one for the whole weight
    for row in range(len(weight)):
        for n in range(weight.shape[1] // size):
            values = weight[row, n * size : (n + 1) * size]
            alone = grid.step(values.min(), values.max(), dtype)
            assert (alone.scale, alone.zero) == (step.scale[row, n], step.zero[row, n])


@given(cases(), SEEDS, st.sampled_from([0.3, 1.0]))
@some
def test_each_group_of_each_row_is_quantized_on_its_own_step(case: tuple[Weights, Tensor], seed: int, share: float):
    """On min-max ranges and on those that clip; with values between two codes."""
    scheme, weight = case
    step = step_of(share * weight, scheme)
    wide = step.scale.abs().repeat_interleave(scheme.group or weight.shape[1], dim=1)
    weight = with_ties(weight, wide, seed)
    codes = weights.quantize(weight, step, scheme)
    assert torch.equal(codes, looped(weight, step, scheme, Grid.quantize))
    assert torch.equal(weights.dequantize(codes, step, scheme), looped(codes, step, scheme, Grid.dequantize))
    kept = codes.to(weights.grid_of(scheme).dtype)
    assert torch.equal(weights.dequantize(kept, step, scheme), weights.dequantize(codes, step, scheme))


@given(cases(), st.sampled_from([0.1, 0.5, 1.0]))
@some
def test_what_is_outside_the_grid_is_told_and_clamped_to_its_ends(case: tuple[Weights, Tensor], share: float):
    scheme, weight = case
    step = step_of(share * weight, scheme)
    mask = weights.quantize_and_tell(weight, step, scheme)[1]
    expected = looped(weight, step, scheme, inside).bool()
    assert torch.equal(mask, expected) if mask is not None else expected.all()
    assert torch.equal(weights.clamp(weight, step, scheme), looped(weight, step, scheme, clamped))


@given(cases(), st.sampled_from([0.1, 0.5]))
@some
def test_clamping_moves_no_code_and_leaves_nothing_outside(case: tuple[Weights, Tensor], share: float):
    scheme, weight = case
    step = step_of(share * weight, scheme)
    held = weights.clamp(weight, step, scheme)
    assert torch.equal(weights.quantize(held, step, scheme), weights.quantize(weight, step, scheme))
    assert weights.quantize_and_tell(held, step, scheme)[1] is None
    assert torch.equal(weights.clamp(held, step, scheme), held)


@pytest.mark.parametrize("scheme", [Weights(4), Weights(4, group=8), Weights(3, symmetric=False, group=2)])
def test_the_grid_is_the_schemes(scheme: Weights):
    assert weights.grid_of(scheme) == Grid(scheme.bits, scheme.symmetric)
    step = weights.weight_step(random(0, 5, 16), scheme)
    assert step.scale.shape == step.zero.shape == (5, 16 // (scheme.group or 16))
    assert step.scale.is_contiguous()


def test_a_group_as_wide_as_the_weight_is_a_channel():
    weight = random(0, 5, 16)
    for symmetric in (True, False):
        by_channel, by_group = (Weights(4, symmetric, group) for group in (0, 16))
        step = weights.weight_step(weight, by_channel)
        assert all(map(torch.equal, step, weights.weight_step(weight, by_group)))
        codes = weights.quantize(weight, step, by_channel)
        assert torch.equal(codes, weights.quantize(weight, step, by_group))


def test_smaller_groups_leave_less_error():
    weight, errors = random(0, 8, 64), []
    for group in (0, 32, 16, 8, 4):
        scheme = Weights(4, group=group)
        step = weights.weight_step(weight, scheme)
        approximation = weights.dequantize(weights.quantize(weight, step, scheme), step, scheme)
        errors.append(float((approximation - weight).square().sum()))
    assert errors == sorted(errors, reverse=True)
