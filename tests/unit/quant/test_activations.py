"""Fake-quantized activations against torch's own op, and their gradients against float64 autograd."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import STEP_DTYPE, Quantizer, from_json, to_json
from pipeline.quant.grid import Grid, Step
from tests.unit.quant.quantizers import EIGHT, fake_quantized, static, step_of
from tests.unit.quant.strategies import ACTIVATION_BITS, SEEDS, from_tie, matrices, random, with_ties

many = settings(max_examples=1000)


@given(
    st.sampled_from(ACTIVATION_BITS),
    st.booleans(),
    st.integers(-14, 2),
    SEEDS,
    st.sampled_from([0.01, 1.0, 300.0, 1e5]),
)
@many
def test_static_values_and_gradients_are_torch_per_tensor_affine(
    bits: int, symmetric: bool, exponent: int, seed: int, spread: float
):
    """On power of two scales, with exact ties among the values; the gradient is zero outside the grid's range."""
    low, high = Grid(bits, symmetric).range
    scale, zero = 2.0**exponent, 0 if symmetric else seed % (high + 1)
    x = with_ties(random(seed, 3, 17, spread=spread), torch.tensor(scale), seed)
    upstream = random(seed + 1, 3, 17)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = Quantizer(Activations(bits, symmetric), step_of(scale, zero))(ours)
    expected = torch.fake_quantize_per_tensor_affine(theirs, scale, zero, low, high)
    value.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


def straight_through(x: Tensor, scheme: Activations, step: Step) -> tuple[Tensor, Tensor]:
    """Quantized and restored, as float64 autograd takes it with a rounding whose gradient is 1; and x / scale.

    Dynamic ranges hold all there is, so that their clamp, which may still cut off half a step, has gradient 1, too.
    """
    low, high = Grid(scheme.bits, scheme.symmetric).range
    scale, zero = (part.double() for part in step)
    quotient = x / scale
    codes = quotient + (quotient.round() - quotient).detach() + zero
    held = codes.clamp(low, high)
    return ((codes + (held - codes).detach() if scheme.dynamic else held) - zero) * scale, quotient.detach()


@given(
    matrices(), st.sampled_from(ACTIVATION_BITS), st.booleans(), st.booleans(), st.sampled_from([0.2, 0.9, 1.0]), SEEDS
)
@many
def test_values_and_gradients_are_those_of_float64_autograd(
    x: Tensor, bits: int, symmetric: bool, dynamic: bool, share: float, seed: int
):
    """Static by tensor, on ranges that clip and that do not; dynamic by token. Off ties, which float32 may miss."""
    scheme, grid = Activations(bits, symmetric, dynamic), Grid(bits, symmetric)
    if dynamic:
        step = grid.step(x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True), torch.float32)
    else:
        step = grid.step(share * x.min(), share * x.max(), torch.float32)
    upstream = random(seed, *x.shape)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    value = Quantizer(scheme, None if dynamic else step)(ours)
    expected, quotient = straight_through(theirs, scheme, step)
    value.backward(upstream)
    expected.backward(upstream.double())
    sure = from_tie(quotient) > 2.0**-22 * quotient.abs()
    assert torch.equal(value[sure], expected[sure].float())
    assert torch.equal((ours.grad == 0)[sure], (theirs.grad == 0)[sure])
    assert torch.allclose(ours.grad[sure], theirs.grad[sure].float(), rtol=1e-6, atol=0)
    if dynamic:
        assert torch.equal(ours.grad, upstream)


@given(
    matrices(), st.sampled_from(ACTIVATION_BITS), st.booleans(), st.booleans(), st.sampled_from([0.2, 0.9, 1.0]), SEEDS
)
@many
def test_values_are_the_grids_bit_for_bit(
    x: Tensor, bits: int, symmetric: bool, dynamic: bool, share: float, seed: int
):
    """On any scale, ties included: there is one way to quantize."""
    scheme, grid = Activations(bits, symmetric, dynamic), Grid(bits, symmetric)
    step = grid.step_of(x, STEP_DTYPE) if dynamic else grid.step(share * x.min(), share * x.max(), STEP_DTYPE)
    if not dynamic:
        x = with_ties(x, step.scale, seed)
    value = Quantizer(scheme, None if dynamic else step)(x)
    assert torch.equal(value, grid.dequantize(grid.quantize(x, step), step))


def test_the_gradient_of_a_dynamic_grid_is_the_identity_where_half_a_step_is_cut_off():
    """From -127.5 to 127.5 zero lies at code 128, and that of the greatest value, 256, does not exist."""
    x, upstream = torch.tensor([[-127.5, 0.1, 127.5]], requires_grad=True), random(0, 1, 3)
    value = Quantizer(Activations(8, symmetric=False, dynamic=True))(x)
    value.backward(upstream)
    assert value.tolist() == [[-128, 0, 127]]
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_of_a_static_grid_is_the_identity_where_nothing_is_clipped(symmetric: bool):
    x, grid = random(0, 8, 8).requires_grad_(), Grid(16, symmetric)
    upstream = random(1, 8, 8)
    step = grid.step(1.1 * x.detach().min(), 1.1 * x.detach().max(), STEP_DTYPE)
    Quantizer(Activations(16, symmetric), step)(x).backward(upstream)
    assert torch.equal(x.grad, upstream)


@given(matrices(), st.sampled_from(ACTIVATION_BITS), st.booleans(), SEEDS)
@many
def test_two_grids_hold_a_value_in_two_parts(x: Tensor, bits: int, symmetric: bool, seed: int):
    """What the first one's range holds of it, and the rest; the gradient is zero beyond both."""
    grid, reach = Grid(bits, symmetric), float(x.abs().max()) + 1e-3
    step, outer = (
        grid.step(torch.tensor(-share * reach), torch.tensor(share * reach), STEP_DTYPE) for share in (0.1, 0.5)
    )
    scheme, ours = Activations(bits, symmetric), x.clone().requires_grad_()
    value = Quantizer(scheme, step, outer)(ours)
    low, high = ((code - step.zero) * step.scale for code in grid.range)
    rest = x - x.clamp(low, high)
    theirs = rest.clone().requires_grad_()
    expected_rest = Quantizer(scheme, outer)(theirs)
    assert torch.equal(value, Quantizer(scheme, step)(x) + expected_rest)
    upstream = random(seed, *x.shape)
    value.backward(upstream)
    expected_rest.backward(upstream)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_dynamic_scale_is_a_tokens_own(symmetric: bool):
    """[batch, tokens, width]: what the other tokens hold changes nothing."""
    x, quantizer = random(0, 2, 3, 16), Quantizer(Activations(8, symmetric, dynamic=True))
    x[0, 1] *= 1000
    together = quantizer(x)
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], quantizer(x[i, j]))
    assert not torch.equal(together, x)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_token_of_zeros_stays_zero(symmetric: bool):
    x = random(0, 3, 16)
    x[1] = 0
    assert torch.equal(Quantizer(Activations(8, symmetric, dynamic=True))(x)[1], torch.zeros(16))


def test_sixteen_bits_are_a_real_grid_of_integers():
    x = random(0, 64, 64)
    step = Grid(16).step(x.min(), x.max(), STEP_DTYPE)
    value = Quantizer(Activations(16), step)(x)
    codes = value.double() / step.scale.double()
    assert (codes - codes.round()).abs().max() < 2e-3  # float32 holds code * scale to 2**-24 of up to 2**15
    assert codes.round().abs().max() == 32767
    assert not torch.equal(value, x)
    assert (value - x).abs().max() <= 0.501 * step.scale


def test_under_autocast_the_value_has_the_dtype_that_the_linear_reads():
    """It is quantized in float32, then rounded; the gradient, zero for what is clipped, comes back in x's dtype."""
    x, upstream = random(0, 4, 4).requires_grad_(), random(1, 4, 4).bfloat16()
    reference = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = static(2.0**-7)(x)
    expected = fake_quantized(reference, 2.0**-7)
    value.backward(upstream)
    expected.backward(upstream.float())
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, expected.bfloat16())
    assert x.grad.dtype == torch.float32
    assert torch.equal(x.grad, reference.grad)
    assert 0 < (x.grad == 0).float().mean() < 1


def test_under_autocast_a_dynamic_grid_is_found_in_float32():
    quantizer, upstream = Quantizer(Activations(8, symmetric=False, dynamic=True)), random(1, 4, 4).bfloat16()
    x = random(0, 4, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = quantizer(x)
    value.backward(upstream)
    assert torch.equal(value, quantizer(x.detach()).bfloat16())
    assert torch.equal(x.grad, upstream.float())


@pytest.mark.parametrize("quantizer", [static(0.01), Quantizer(Activations(8, dynamic=True))])
def test_bfloat16_is_quantized_in_float32_and_comes_back_as_bfloat16(quantizer: Quantizer):
    x = random(0, 8, 16).bfloat16()
    value = quantizer(x)
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, quantizer(x.float()).bfloat16())


def test_quantizing_leaves_its_input_alone():
    x = random(0, 4, 4)
    before = x.clone()
    static(0.01)(x)
    Quantizer(Activations(4, dynamic=True))(x)
    assert torch.equal(x, before)


def test_quantizers_that_compare_by_value_have_no_hash_by_identity():
    assert Quantizer(EIGHT) != static(0.5)
    assert static(0.5) != 0.5
    with pytest.raises(TypeError, match="unhashable"):
        hash(static(0.5))


@given(SEEDS, st.sampled_from(ACTIVATION_BITS), st.booleans(), st.booleans())
@settings(max_examples=300)
def test_quantizers_read_back_from_json_to_the_last_bit(seed: int, bits: int, symmetric: bool, dynamic: bool):
    """Any normal float32 scale, any zero point."""
    generator = np.random.default_rng(seed)
    scale = np.uint32(generator.integers(0x00800000, 0x7F7FFFFF)).view(np.float32)
    zero = 0 if symmetric else int(generator.integers(2**bits))
    scheme = Activations(bits, symmetric, dynamic, "percentile", 99.9)
    two = Quantizer(EIGHT, step_of(0.1), step_of(float(scale), zero))
    quantizers = {
        "a.q": Quantizer(scheme, None if dynamic else step_of(float(scale), zero)),
        "b": static(0.1),
        "c": two,
    }
    stored = json.loads(json.dumps(to_json(quantizers), allow_nan=False))
    loaded = from_json(stored)
    assert loaded == quantizers
    assert loaded["c"] != Quantizer(EIGHT, step_of(0.1))
    assert ("scale" in stored["a.q"]) == ("zero" in stored["a.q"]) == (not dynamic)
    if not dynamic:
        assert [part.dtype for part in loaded["a.q"].step] == [torch.float32] * 2
        assert loaded["a.q"].step.scale.numpy().view(np.uint32) == scale.view(np.uint32)
