"""GPTQ against optimal brain quantization written out in float64, its inverse Hessian updated column by column."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step
from pipeline.rounding.feedback import MAX_DAMPING, feed_back, inverse_factor
from pipeline.rounding.methods import SCALES, Rounded, gptq, mse, rtn
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, from_tie
from tests.unit.rounding.problems import FOUR, SCHEMES, named, output_error, problem


def fed_back(weight: Tensor, hessian: Tensor, step: Step, scheme: Weights, act_order: bool) -> Rounded:
    """GPTQ's feedback alone."""
    order = torch.argsort(-hessian.diagonal()) if act_order else torch.arange(len(hessian))
    upper, _ = inverse_factor(hessian[order][:, order], 0.01)
    codes, latent = feed_back(weight, upper, order, step, scheme, 128)
    return Rounded(codes, step, weights.clamp(latent, step, scheme), scheme)


def brain_surgery(
    weight: Tensor, hessian: Tensor, scheme: Weights, step: Step, damping: float, act_order: bool
) -> tuple[Tensor, Tensor]:
    """Codes, and the float64 numbers in units of the scale that each was rounded from."""
    h = hessian.double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse, left = torch.linalg.inv(h), weight.double().clone()
    size = scheme.group or len(h)
    scale, zero = (part.double().repeat_interleave(size, dim=1) for part in step)
    low, high = weights.grid_of(scheme).range
    codes, rounded_from = torch.empty_like(left), torch.empty_like(left)
    for j in sorted(range(len(h)), key=lambda j: -hessian[j, j].item()) if act_order else range(len(h)):
        rounded_from[:, j] = left[:, j] / scale[:, j]
        codes[:, j] = (rounded_from[:, j].round() + zero[:, j]).clamp(low, high)
        error = (left[:, j] - (codes[:, j] - zero[:, j]) * scale[:, j]) / inverse[j, j]
        left -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, rounded_from


@named
def test_gptq_takes_the_steps_of_optimal_brain_quantization(scheme: Weights):
    """Row by row: one that comes within float32 noise of a tie may go either way, and is left out."""
    compared = 0
    cases = [*itertools.product(SCALES, (True, False))]
    for seed, (scales, act_order) in enumerate(cases):
        weight, _, hessian = problem(seed)
        rounded = fed_back(weight, hessian, SCALES[scales](weight, hessian, scheme), scheme, act_order)
        expected, rounded_from = brain_surgery(weight, hessian, scheme, rounded.step, 0.01, act_order)
        sure = (from_tie(rounded_from) > 1e-4).all(dim=1)
        assert torch.equal(rounded.codes[sure].double(), expected[sure])
        size = scheme.group or weight.shape[1]
        scale, zero = (part.double().repeat_interleave(size, dim=1) for part in rounded.step)
        low, high = (end - zero for end in weights.grid_of(scheme).range)
        assert torch.allclose((rounded.latent / scale)[sure], rounded_from.clamp(low, high)[sure], atol=1e-3)
        compared += int(sure.sum())
    assert compared > 0.9 * len(cases) * 12


def test_min_max_scales_are_those_of_round_to_nearest():
    weight, _, hessian = problem(0)
    for scheme in SCHEMES:
        assert all(
            map(torch.equal, gptq(weight, hessian, scheme, scales="minmax").step, rtn(weight, None, scheme).step)
        )


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("block", [1, 5, 16, 1000])
@pytest.mark.parametrize("scheme", [FOUR, Weights(3, symmetric=False, group=4)])
def test_the_block_changes_speed_and_not_the_codes(scheme: Weights, block: int, act_order: bool):
    weight, _, hessian = problem(3)
    rounded, other = (gptq(weight, hessian, scheme, block=b, act_order=act_order) for b in (block, 7))
    assert torch.equal(rounded.codes, other.codes)
    assert torch.allclose(rounded.latent, other.latent, atol=1e-5)


@named
def test_gptq_leaves_less_output_error_than_rounding_to_nearest(scheme: Weights):
    """With the scales it takes unless told otherwise, on ordinary problems."""
    for seed in range(20):
        weight, x, hessian = problem(seed)
        ours, nearest = gptq(weight, hessian, scheme).weight, rtn(weight, None, scheme).weight
        assert output_error(weight, ours, x) < output_error(weight, nearest, x)


@pytest.mark.parametrize("scales", SCALES)
@given(SEEDS, st.sampled_from(WEIGHT_BITS), st.booleans(), st.sampled_from([0, 4]), st.sampled_from([0.0, 0.9, 0.99]))
@settings(max_examples=100)
def test_in_no_output_channel_gptq_leaves_more_error(
    scales: str, seed: int, bits: int, symmetric: bool, group: int, correlation: float
):
    """Nor on heavy-tailed weights and strongly correlated inputs, where the feedback alone can; to float32's sums."""
    scheme, draw = Weights(bits, symmetric, group), torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 16, generator=draw) / torch.rand(8, 16, generator=draw).clamp(min=1e-2)
    x = torch.randn(60, 16, generator=draw) * (1 - correlation) + torch.randn(60, 1, generator=draw) * correlation
    hessian = x.T @ x
    pair = (f(weight, hessian, scheme, **more).weight for f, more in ((gptq, {"scales": scales}), (rtn, {})))
    ours, nearest = ((x.double() @ (weight - approximation).double().T).square().sum(dim=0) for approximation in pair)
    assert (ours <= nearest * (1 + 1e-3)).all()


def test_the_feedback_alone_can_leave_more():
    """Which is what the comparison by output channel is for: some channel of some such problem comes out worse."""
    scheme, worse = Weights(3, symmetric=False, group=4), 0
    for seed in range(40):
        weight, x, hessian = problem(seed)
        step = SCALES["minmax"](weight, hessian, scheme)
        alone, nearest = fed_back(weight, hessian, step, scheme, True), rtn(weight, None, scheme)
        errors = ((x @ (weight - rounded.weight).T).square().sum(dim=0) for rounded in (alone, nearest))
        worse += int((next(errors) > 1.01 * next(errors)).sum())
    assert worse


def test_without_correlation_gptq_is_rounding_to_nearest():
    weight = problem(0)[0]
    for hessian in (torch.diag(torch.linspace(1, 5, 16)), torch.zeros(16, 16)):
        for scheme in SCHEMES:
            rounded = gptq(weight, hessian, scheme, scales="minmax")
            assert torch.equal(rounded.codes, rtn(weight, None, scheme).codes)
            assert torch.allclose(rounded.latent, weights.clamp(weight, rounded.step, scheme))


def test_damping_is_raised_tenfold_until_a_singular_hessian_inverts():
    weight, x, _ = problem(1, tokens=4)
    hessian = x.T @ x  # rank 4 of 16
    rounded = gptq(weight, hessian, FOUR, damping=1e-12)
    assert 1e-12 < rounded.damping <= 1
    assert math.log10(rounded.damping) == pytest.approx(round(math.log10(rounded.damping)))
    assert output_error(weight, rounded.weight, x) < output_error(weight, rtn(weight, None, FOUR).weight, x)
    with_less = hessian.double() + rounded.damping / 10 * hessian.double().diagonal().mean() * torch.eye(16)
    assert torch.linalg.cond(with_less) > 1e6  # where float32 gives up


@pytest.mark.parametrize("damping", [0.01, 0.3, 1.0])
def test_a_damping_that_is_enough_is_kept(damping: float):
    weight, _, hessian = problem(1)
    assert gptq(weight, hessian, FOUR, damping=damping).damping == damping
    assert rtn(weight, None, FOUR).damping == mse(weight, None, FOUR).damping == 0.0


def test_damping_is_a_share_of_the_mean_diagonal():
    hessian = problem(1)[2]
    upper, used = inverse_factor(hessian, 0.3)
    damped = hessian.double() + 0.3 * hessian.double().diagonal().mean() * torch.eye(16)
    assert used == 0.3
    assert torch.equal(upper, upper.triu())
    assert torch.allclose((upper.T @ upper).double(), torch.linalg.inv(damped), rtol=1e-3, atol=1e-7)


def test_a_hessian_that_inverts_under_no_damping_is_refused_with_the_last_one_tried():
    hessian = torch.eye(4)
    hessian[0, 1] = hessian[1, 0] = 10.0  # indefinite however damped
    with pytest.raises(ValueError, match=rf"does not invert with damping {MAX_DAMPING}"):
        gptq(torch.ones(2, 4), hessian, FOUR, damping=0.03)


@named
def test_an_input_that_is_always_zero_does_no_harm(scheme: Weights):
    weight, x, _ = problem(2)
    x[:, 3] = 0
    rounded = gptq(weight, x.T @ x, scheme, scales="minmax")
    assert torch.equal(rounded.codes[:, 3], rtn(weight, None, scheme).codes[:, 3])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(3, 3), (3, 4)])
@pytest.mark.parametrize("scales", SCALES)
def test_a_hessian_that_is_not_finite_is_refused(value: float, place: tuple[int, int], scales: str):
    weight, _, hessian = problem(0)
    hessian[place] = hessian[place[::-1]] = value
    with pytest.raises(ValueError, match="finite"):
        gptq(weight, hessian, FOUR, scales=scales)
