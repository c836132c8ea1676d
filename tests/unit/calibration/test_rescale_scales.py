"""The scales that SmoothQuant and AWQ find, against their papers."""

import pytest
import torch
from torch import Tensor

from pipeline.calibration.layers import Inputs
from pipeline.calibration.rescale import EXPONENTS, RESCALINGS, awq, smoothquant
from pipeline.knobs.scheme import Weights
from pipeline.rounding.methods import rtn


def inputs_of(x: Tensor) -> Inputs:
    inputs = Inputs.empty(x.shape[1])
    inputs.add(x)
    inputs.finish()
    return inputs


def problem(seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Weights of three linears that read the same inputs [tokens, 16], some of whose channels are large."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    x[:, [2, 11]] *= 25
    return [torch.randn(rows, 16, generator=generator) for rows in (12, 8, 5)], x


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_smoothquants_scale_is_that_of_the_paper(strength: float):
    """Equation 4 in float64; the weights' maximum goes over all linears that read the input."""
    weights, x = problem()
    scale = smoothquant(weights, inputs_of(x), [Weights(8)] * 3, strength)
    top = torch.cat(weights).double().abs().amax(dim=0)
    expected = x.double().abs().amax(dim=0) ** strength / top ** (1 - strength)
    torch.testing.assert_close(scale.double(), expected, rtol=1e-5, atol=0)


def test_half_of_smoothquants_migration_makes_both_maxima_equal():
    weights, x = problem()
    scale = smoothquant(weights, inputs_of(x), [Weights(8)] * 3, 0.5)
    torch.testing.assert_close((x / scale).abs().amax(dim=0), (torch.cat(weights) * scale).abs().amax(dim=0))


def candidate(weights: list[Tensor], x: Tensor, exponent: float) -> Tensor:
    """AWQ's scale at an exponent, in float64, its extremes balanced around one."""
    if exponent == 0:
        return torch.ones(x.shape[1], dtype=torch.float64)
    normal = torch.cat([w.double().abs() / w.double().abs().amax(dim=1, keepdim=True) for w in weights]).mean(dim=0)
    scale = x.double().abs().mean(dim=0) ** exponent / normal ** (1 - exponent)
    return scale / (scale.max() * scale.min()).sqrt()


def output_error(weights: list[Tensor], x: Tensor, schemes: list[Weights], scale: Tensor) -> float:
    """Squared error of the outputs x W^T with W replaced by Q(W s) / s, over the readers that are quantized."""
    total = 0.0
    for weight, scheme in zip(weights, schemes, strict=True):
        if scheme.bits:
            rounded = rtn(weight * scale.float(), None, scheme).weight.double() / scale.double()
            total += float((x.double() @ (rounded - weight.double()).T).square().sum())
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "schemes",
    [[Weights(3)] * 3, [Weights(4, group=8), Weights(2), Weights(0)], [Weights(4, symmetric=False)] * 3],
    ids=["one scheme", "mixed, one in float", "asymmetric"],
)
def test_awq_takes_the_exponent_with_the_least_output_error(schemes: list[Weights], seed: int):
    weights, x = problem(seed)
    weights[2] *= 100  # its error, where it has any, outweighs the others'
    scale = awq(weights, inputs_of(x), schemes, 0.5)
    errors = {exponent: output_error(weights, x, schemes, candidate(weights, x, exponent)) for exponent in EXPONENTS}
    best = min(errors, key=errors.__getitem__)
    assert output_error(weights, x, schemes, scale) == pytest.approx(errors[best], rel=1e-3)
    torch.testing.assert_close(scale.double(), candidate(weights, x, best), rtol=1e-4, atol=0)
    assert best > 0
    assert errors[best] < 0.9 * errors[0.0]


def test_awqs_exponents_run_from_zero_to_just_below_one_in_twentieths():
    assert pytest.approx([i / 20 for i in range(20)]) == EXPONENTS


def test_awq_leaves_weights_alone_that_their_grid_already_holds():
    weights, x = problem()
    exact = [rtn(weight, None, Weights(4)).weight for weight in weights]
    assert torch.equal(awq(exact, inputs_of(x), [Weights(4)] * 3, 0.5), torch.ones(16))


@pytest.mark.parametrize("method", RESCALINGS)
def test_channels_that_are_always_zero_do_no_harm(method: str):
    weights, x = problem()
    x[:, 4] = 0
    for weight in weights:
        weight[:, 7] = 0
    scale = RESCALINGS[method](weights, inputs_of(x), [Weights(4)] * 3, 0.5)
    assert bool(scale.isfinite().all())
    assert bool((scale > 0).all())
