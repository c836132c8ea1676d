"""What holds for every rounding; round to nearest against compressed-tensors."""

import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.rounding.methods import ROUNDINGS, Rounded, output_sqnr, rtn
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, matrices, random
from tests.unit.rounding.problems import FOUR, output_error, problem


def test_rtn_gives_the_codes_of_compressed_tensors_and_keeps_the_weight_as_latent():
    weight = problem(0)[0]
    for group, strategy in ((0, "channel"), (4, "group")):
        rounded = rtn(weight, None, Weights(4, group=group))
        args = QuantizationArgs(num_bits=4, symmetric=True, strategy=strategy, group_size=group or None)
        expected = their_quantize(weight, rounded.step.scale, torch.zeros_like(rounded.step.scale), args)
        assert torch.equal(rounded.codes.float(), expected)
        assert torch.equal(rounded.latent, weight)


@pytest.mark.parametrize("method", ROUNDINGS)
@given(matrices(multiple=4), SEEDS, st.sampled_from(WEIGHT_BITS), st.booleans(), st.sampled_from([0, 1, 2, 4]))
@settings(max_examples=100)
def test_every_method_gives_codes_that_its_latent_weight_rounds_to(
    method: str, weight: Tensor, seed: int, bits: int, symmetric: bool, group: int
):
    scheme = Weights(bits, symmetric, group)
    x = random(seed, 30, weight.shape[1])
    hessian = x.T @ x
    before = weight.clone(), hessian.clone()
    rounded = ROUNDINGS[method](weight, hessian, scheme)
    check_rounded(rounded, weight, scheme)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def check_rounded(rounded: Rounded, weight: Tensor, scheme: Weights) -> None:
    """Types, shapes, and codes that fit the grid, the latent weight and the weight that they stand for."""
    groups = weight.shape[1] // (scheme.group or weight.shape[1])
    assert rounded.scheme == scheme
    assert rounded.codes.dtype == (torch.int8 if scheme.symmetric else torch.uint8)
    assert rounded.codes.shape == rounded.latent.shape == weight.shape
    assert rounded.latent.dtype == torch.float32
    low, high = weights.grid_of(scheme).range
    assert low <= rounded.codes.min() <= rounded.codes.max() <= high
    for part in rounded.step:
        assert (part.shape, part.dtype) == ((len(weight), groups), torch.float32)
    ranges = weight.unflatten(1, (groups, -1)).aminmax(dim=-1)
    stored = weights.grid_of(scheme).scale_dtype(*ranges)
    assert torch.equal(rounded.step.scale.to(stored).float(), rounded.step.scale)
    assert torch.equal(rounded.step.zero, rounded.step.zero.round().clamp(0, 0 if scheme.symmetric else high))
    assert torch.equal(weights.quantize(rounded.latent, rounded.step, scheme), rounded.codes.float())
    assert torch.equal(rounded.weight, weights.dequantize(rounded.codes, rounded.step, scheme))


def test_output_sqnr_is_that_of_the_outputs_themselves():
    weight, x, hessian = problem(0)
    approximation = rtn(weight, None, FOUR).weight
    signal = output_error(weight, torch.zeros_like(weight), x)
    expected = 10 * math.log10(signal / output_error(weight, approximation, x))
    assert output_sqnr(weight, approximation, hessian) == pytest.approx(expected, abs=1e-4)
    assert output_sqnr(weight, weight, hessian) == 200.0
    assert output_sqnr(torch.zeros_like(weight), weight, hessian) == -200.0
    assert output_sqnr(weight, approximation, torch.zeros_like(hessian)) == 200.0
