"""GPTQ against optimal brain quantization written out in float64, its inverse Hessian updated column by column."""

import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from torch import Tensor

from pipeline.quant.grid import channel_scale, quantize
from pipeline.quant.methods import PTQ_METHODS, gptq, output_sqnr, rtn


def problem(seed: int, out: int = 12, columns: int = 16, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, columns], correlated inputs X [tokens, columns] of unequal strength, and X^T X."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    strength = torch.linspace(0.3, 3, columns)[torch.randperm(columns, generator=generator)]
    x = torch.randn(tokens, columns, generator=generator) @ mixing * strength
    return torch.randn(out, columns, generator=generator), x, x.T @ x


def output_error(weight: Tensor, approximation: Tensor, x: Tensor) -> float:
    return float((x.double() @ (weight - approximation).double().T).square().sum())


def brain_surgery(weight: Tensor, hessian: Tensor, bits: int, damping: float, act_order: bool) -> tuple[Tensor, Tensor]:
    """Codes, and the float64 numbers in units of the scale that each was rounded from."""
    h = hessian.double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    left, scale = weight.double().clone(), channel_scale(weight, bits).double().squeeze(1)
    codes, rounded_from = torch.empty_like(left), torch.empty_like(left)
    order = sorted(range(len(h)), key=lambda j: -hessian[j, j].item()) if act_order else range(len(h))
    for j in order:
        rounded_from[:, j] = left[:, j] / scale
        codes[:, j] = rounded_from[:, j].round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (left[:, j] - codes[:, j] * scale) / inverse[j, j]
        left -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, rounded_from


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_takes_the_steps_of_optimal_brain_quantization(bits: int, act_order: bool):
    """Row by row: one that comes within float32 noise of a tie may go either way, and is left out."""
    compared = 0
    for seed in range(8):
        weight, _, hessian = problem(seed)
        expected, rounded_from = brain_surgery(weight, hessian, bits, 0.01, act_order)
        sure = ((rounded_from - rounded_from.floor() - 0.5).abs() > 1e-4).all(dim=1)
        found = gptq(weight, hessian, bits, act_order=act_order)
        assert torch.equal(found.codes[sure].double(), expected[sure])
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        in_units = found.latent.double() / found.scale.double()
        assert torch.allclose(in_units[sure], rounded_from.clamp(low, high)[sure], atol=1e-3)
        compared += int(sure.sum())
    assert compared > 0.9 * 8 * 12


@pytest.mark.parametrize("block", [1, 5, 16, 1000])
def test_the_block_changes_speed_and_not_the_codes(block: int):
    weight, _, hessian = problem(3)
    assert torch.equal(gptq(weight, hessian, 4, block=block).codes, gptq(weight, hessian, 4, block=7).codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_leaves_less_output_error_than_rounding_to_nearest(bits: int):
    errors = []
    for seed in range(20):
        weight, x, hessian = problem(seed)
        pair = gptq(weight, hessian, bits).weight, rtn(weight, None, bits).weight
        errors.append([output_error(weight, approximation, x) for approximation in pair])
    ours, nearest = torch.tensor(errors).T
    assert ours.sum() < 0.7 * nearest.sum()
    assert (ours <= nearest).float().mean() > 0.9


def test_without_correlation_gptq_is_rounding_to_nearest():
    weight = problem(0)[0]
    for hessian in (torch.diag(torch.linspace(1, 5, 16)), torch.zeros(16, 16)):
        assert torch.equal(gptq(weight, hessian, 4).codes, rtn(weight, None, 4).codes)


def test_rtn_gives_the_codes_of_compressed_tensors_and_keeps_the_weight_as_latent():
    weight = problem(0)[0]
    found = rtn(weight, None, 4)
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy=QuantizationStrategy.CHANNEL)
    expected = their_quantize(weight, found.scale, torch.zeros_like(found.scale), args)
    assert torch.equal(found.codes.float(), expected)
    assert torch.equal(found.latent, weight)


@pytest.mark.parametrize("method", sorted(PTQ_METHODS))
def test_every_method_gives_codes_that_its_latent_weight_rounds_to(method: str):
    weight, _, hessian = problem(5)
    before = weight.clone(), hessian.clone()
    found = PTQ_METHODS[method](weight, hessian, 4)
    assert (found.codes.dtype, found.scale.dtype, found.latent.dtype) == (torch.int8, torch.float32, torch.float32)
    assert torch.equal(quantize(found.latent, found.scale, 4), found.codes.float())
    assert torch.equal(found.scale, channel_scale(weight, 4))
    assert torch.equal(found.weight, found.codes.float() * found.scale)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_damping_is_raised_tenfold_until_a_singular_hessian_inverts():
    weight, x, _ = problem(1, tokens=4)
    hessian = x.T @ x  # rank 4 of 16
    found = gptq(weight, hessian, 4, damping=1e-12)
    assert 1e-12 < found.damping <= 1
    assert math.log10(found.damping) == pytest.approx(round(math.log10(found.damping)))
    assert output_error(weight, found.weight, x) < output_error(weight, rtn(weight, None, 4).weight, x)
    assert gptq(weight, problem(1)[2], 4, damping=0.01).damping == 0.01


def test_an_input_that_is_always_zero_does_no_harm():
    weight, x, _ = problem(2)
    x[:, 3] = 0
    found = gptq(weight, x.T @ x, 4)
    assert torch.equal(found.codes[:, 3], rtn(weight, None, 4).codes[:, 3])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(3, 3), (3, 4)])
def test_a_hessian_that_is_not_finite_is_refused(value: float, place: tuple[int, int]):
    weight, _, hessian = problem(0)
    hessian[place] = hessian[place[::-1]] = value
    with pytest.raises(ValueError, match="finite"):
        gptq(weight, hessian, 4)


def test_output_sqnr_is_that_of_the_outputs_themselves():
    weight, x, hessian = problem(0)
    approximation = rtn(weight, None, 4).weight
    signal = output_error(weight, torch.zeros_like(weight), x)
    expected = 10 * math.log10(signal / output_error(weight, approximation, x))
    assert output_sqnr(weight, approximation, hessian) == pytest.approx(expected, abs=1e-4)
    assert output_sqnr(weight, weight, hessian) == 200.0
