"""The searches for scales against brute force."""

import itertools

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step
from pipeline.rounding.methods import clip, mse, rtn
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, matrices, random
from tests.unit.rounding.problems import group_errors, named, output_error, problem


@given(matrices(multiple=4), st.sampled_from(WEIGHT_BITS), st.booleans(), st.sampled_from([0, 4]))
@settings(max_examples=150)
def test_mse_never_leaves_more_weight_error_than_rounding_to_nearest(
    weight: Tensor, bits: int, symmetric: bool, group: int
):
    """Group by group."""
    scheme = Weights(bits, symmetric, group)
    ours, nearest = (group_errors(weight, f(weight, None, scheme).weight, scheme) for f in (mse, rtn))
    assert (ours <= nearest * (1 + 1e-5)).all()


@given(matrices(multiple=4), SEEDS, st.sampled_from(WEIGHT_BITS), st.booleans(), st.sampled_from([0, 4]))
@settings(max_examples=150)
def test_clip_never_leaves_more_output_error_than_rounding_to_nearest(
    weight: Tensor, seed: int, bits: int, symmetric: bool, group: int
):
    """Group by group, which without groups is the output error itself; to what float32 sums can tell."""
    scheme = Weights(bits, symmetric, group)
    x = random(seed, 40, weight.shape[1]) @ random(seed + 1, weight.shape[1], weight.shape[1])
    hessian = x.T @ x
    clipped, nearest = clip(weight, hessian, scheme).weight, rtn(weight, None, scheme).weight
    theirs = group_errors(weight, nearest, scheme, hessian)
    assert (group_errors(weight, clipped, scheme, hessian) <= theirs * (1 + 1e-4)).all()
    if not group:
        assert output_error(weight, clipped, x) <= output_error(weight, nearest, x) * (1 + 1e-4)


@named
def test_clip_leaves_less_output_error_in_all(scheme: Weights):
    """Groups together, too, where their errors meet in the output."""
    errors = []
    for seed in range(12):
        weight, x, hessian = problem(seed)
        pair = clip(weight, hessian, scheme).weight, rtn(weight, None, scheme).weight
        errors.append([output_error(weight, approximation, x) for approximation in pair])
    ours, nearest = torch.tensor(errors).sum(dim=0)
    assert ours < {2: 0.7, 3: 0.85, 4: 0.9, 8: 0.95}[scheme.bits] * nearest


@pytest.mark.parametrize("method", [mse, clip])
@named
def test_the_search_comes_near_the_best_of_many_shares_by_brute_force(scheme: Weights, method):
    """In the sum over groups."""
    ours = best = 0.0
    for seed in range(4):
        weight, _, hessian = problem(seed)
        hessian = hessian if method is clip else None
        tried = []
        signs = (1, -1) if scheme.symmetric and scheme.group and scheme.bits < 8 else (1,)
        for share, sign in itertools.product(torch.linspace(0.3, 1, 141), signs):
            scale, zero = weights.weight_step(share * weight, scheme)
            step = Step(sign * scale, zero)
            approximation = weights.dequantize(weights.quantize(weight, step, scheme), step, scheme)
            tried.append(group_errors(weight, approximation, scheme, hessian))
        best += float(torch.stack(tried).amin(dim=0).sum())
        ours += float(group_errors(weight, method(weight, hessian, scheme).weight, scheme, hessian).sum())
    assert ours <= 1.1 * best


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_groups_longer_side_gets_the_code_that_the_other_side_lacks(bits: int):
    """Groups from -2^(b-1) to 2^(b-1) - 1 in units of their scales, upright and turned over: both exact."""
    half = 2 ** (bits - 1)
    levels = torch.arange(-half, half).float()
    weight = 0.25 * torch.cat([levels, -levels])[None]
    scheme = Weights(bits, group=len(levels))
    for rounded in (mse(weight, None, scheme), clip(weight, torch.eye(2 * len(levels)), scheme)):
        assert rounded.step.scale.tolist() == [[0.25, -0.25]]
        assert torch.equal(rounded.weight, weight)


@pytest.mark.parametrize("scheme", [Weights(4), Weights(8, group=4), Weights(4, symmetric=False, group=16)], ids=str)
def test_scales_of_rows_of_8_bits_and_of_asymmetric_groups_stay_above_zero(scheme: Weights):
    for seed in range(4):
        weight, _, hessian = problem(seed)
        assert all((method(weight, hessian, scheme).step.scale > 0).all() for method in (mse, clip))


def test_it_leaves_less_error_than_ggufs_own_q4_0():
    """Whose scales have signs, too, but no shares: block by block on the least and greatest values that there are."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    theirs = torch.from_numpy(
        dequantize(quantize(weight.numpy(), GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    )
    scheme = Weights(4, group=32)
    ours, theirs = (group_errors(weight, w, scheme) for w in (mse(weight, None, scheme).weight, theirs))
    assert ours.sum() < 0.9 * theirs.sum()
