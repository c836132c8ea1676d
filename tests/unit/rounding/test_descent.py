"""Coordinate descent: no step makes the error larger, and what it ends at cannot be bettered code by code."""

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step
from pipeline.rounding.descent import descend
from pipeline.rounding.methods import gptq, rtn

SCHEMES = [Weights(4), Weights(3, group=8), Weights(4, symmetric=False), Weights(2, symmetric=False, group=8)]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.bits}-{s.symmetric}-{s.group}")


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [12, 32] and the Hessian of inputs some of whose directions are a hundred times as large as others."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    inputs = (torch.randn(500, 32, generator=generator) * torch.logspace(0, -2, 32)) @ turn
    return torch.randn(12, 32, generator=generator), inputs.T @ inputs


def errors(weight: Tensor, hessian: Tensor, codes: Tensor, step: Step, scheme: Weights) -> Tensor:
    """e H e^T of each output channel in float64."""
    error = (weights.dequantize(codes, step, scheme) - weight).double()
    return ((error @ hessian.double()) * error).sum(dim=1)


@each_scheme
@pytest.mark.parametrize("block", [5, 32])
def test_each_pass_lessens_the_error_of_every_channel(scheme: Weights, block: int):
    weight, hessian = problem()
    start = rtn(weight, None, scheme)
    previous_errors = errors(weight, hessian, start.codes.float(), start.step, scheme)
    for passes in (1, 2, 3):
        codes, step, latent = descend(weight, hessian, start.codes.float(), start.step, scheme, passes, block)
        channel_errors = errors(weight, hessian, codes, step, scheme)
        assert (channel_errors <= previous_errors * (1 + 1e-3)).all(), "more than float16 scales may add"
        assert channel_errors.sum() < previous_errors.sum()
        assert torch.equal(step.scale, step.scale.half().float())
        assert torch.equal(weights.quantize(latent, step, scheme), codes)
        previous_errors = channel_errors


@each_scheme
def test_at_the_end_no_code_has_a_better_one_beside_it(scheme: Weights):
    weight, hessian = problem(1)
    start = rtn(weight, None, scheme)
    codes, step, _ = descend(weight, hessian, start.codes.float(), start.step, scheme, 60, 8)
    low, high = weights.grid_of(scheme).range
    lowest = errors(weight, hessian, codes, step, scheme)
    for column in range(32):
        for change in (-1, 1):
            other = codes.clone()
            other[:, column] = (other[:, column] + change).clamp(low, high)
            assert (errors(weight, hessian, other, step, scheme) >= lowest * (1 - 1e-5)).all()


@each_scheme
def test_a_scale_is_the_least_squares_one_for_its_codes(scheme: Weights):
    """Of one group: by torch's lstsq on the Hessian's square root."""
    if scheme.group:
        pytest.skip("scales of several groups are set one after the other")
    weight, hessian = problem(2)
    start = rtn(weight, None, scheme)
    _, step, _ = descend(weight, hessian, start.codes.float(), start.step, scheme, 1, 32)
    root = torch.linalg.cholesky(hessian.double())
    for row in range(12):
        values = (start.codes[row].double() - start.step.zero[row].double())[None] @ root
        exact = torch.linalg.lstsq(values.T, (weight[row].double()[None] @ root).T).solution
        assert float(step.scale[row, 0]) == pytest.approx(float(exact), rel=2**-10)


def test_the_columns_that_change_at_once_change_speed_alone():
    weight, hessian = problem(3)
    start = rtn(weight, None, SCHEMES[0])
    one, other = (
        descend(weight, hessian, start.codes.float(), start.step, SCHEMES[0], 3, block)[0] for block in (1, 32)
    )
    assert torch.equal(one, other)


def test_a_group_whose_codes_are_all_zero_keeps_its_scale():
    weight, hessian = problem(4)
    weight[3] = 0
    start = rtn(weight, None, SCHEMES[0])
    codes, step, _ = descend(weight, hessian, start.codes.float(), start.step, SCHEMES[0], 2, 32)
    assert not codes[3].any()
    assert step.scale[3] == start.step.scale[3]


@each_scheme
def test_gptq_is_better_for_it_in_every_channel_taken_together(scheme: Weights):
    weight, hessian = problem(5)
    roundings = [gptq(weight, hessian, scheme, descent=passes) for passes in (0, 2, 6)]
    first, second, third = (errors(weight, hessian, r.codes.float(), r.step, scheme).sum() for r in roundings)
    assert second < 0.97 * first
    assert third <= second
    for r in roundings:
        assert torch.equal(weights.quantize(r.latent, r.step, scheme), r.codes.float())


def test_scales_below_zero_are_like_those_above():
    """A weight turned over, on scales turned over, comes to the same codes, and scales keep their signs."""
    scheme, (weight, hessian) = Weights(4, group=8), problem(2)
    start = rtn(weight, None, scheme)
    upright = descend(weight, hessian, start.codes.float(), start.step, scheme, 3, 8)
    turned = Step(-start.step.scale, start.step.zero)
    codes, step, latent = descend(-weight, hessian, start.codes.float(), turned, scheme, 3, 8)
    assert torch.equal(codes, upright[0])
    assert torch.equal(step.scale, -upright[1].scale)
    assert torch.equal(latent, -upright[2])
