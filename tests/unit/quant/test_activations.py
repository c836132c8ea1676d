import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.quant.activations import FakeQuantize, activation_scale, quantize_inputs, read_scales


def random(seed: int, *shape: int, spread: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


def fake_quantized(x: Tensor, scale: float) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)


@given(
    st.sampled_from([4, 8, 16]), st.integers(-14, 2), st.integers(0, 2**32), st.sampled_from([0.01, 1.0, 300.0, 1e5])
)
@settings(max_examples=1000)
def test_values_and_gradients_are_torch_per_tensor_affine(bits: int, exponent: int, seed: int, spread: float):
    """On power of two scales, with exact ties among the values; the gradient is zero outside the grid's range."""
    scale = 2.0**exponent
    x = random(seed, 3, 17, spread=spread)
    x[0] = ((x[0] / scale).clamp(-(2**18), 2**18).floor() + 0.5) * scale
    upstream = random(seed + 1, 3, 17)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = FakeQuantize.apply(ours, torch.tensor(scale), bits)
    expected = torch.fake_quantize_per_tensor_affine(theirs, scale, 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    value.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_the_gradient_is_the_identity_where_nothing_is_clipped():
    x = random(0, 8, 8).requires_grad_()
    upstream = random(1, 8, 8)
    FakeQuantize.apply(x, activation_scale(x.detach().abs().max(), 16), 16).backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_sixteen_bits_are_a_real_grid_of_integers():
    x = random(0, 64, 64)
    scale = activation_scale(x.abs().max(), 16)
    value = FakeQuantize.apply(x, scale, 16)
    codes = value.double() / scale.double()
    assert (codes - codes.round()).abs().max() < 2e-3  # float32 holds code * scale to 2**-24 of up to 2**15
    assert codes.round().abs().max() == 32767
    assert not torch.equal(value, x)
    assert (value - x).abs().max() <= 0.501 * scale


def test_under_autocast_the_value_has_the_dtype_that_the_linear_reads():
    x, scale = random(0, 4, 4), torch.tensor(2.0**-10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FakeQuantize.apply(x, scale, 8)
    expected = fake_quantized(x, scale.item())
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, expected.bfloat16())


@pytest.mark.parametrize("bits", [8, 16])
def test_the_static_scale_is_absmax_over_the_greatest_code_in_float32(bits: int):
    absmax = random(0, 100).abs()
    expected = torch.from_numpy(absmax.numpy() / np.float32(2 ** (bits - 1) - 1))
    assert torch.equal(activation_scale(absmax, bits), expected)
    assert activation_scale(torch.tensor(0.0), bits) == 1


class Two(nn.Module):
    """Two linears that read the same tensor, and one that reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) + self.k(x))


def inputs_seen(model: Two) -> dict[str, Tensor]:
    """The input that each linear really computes with, by name; filled when the model runs."""
    seen: dict[str, Tensor] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0]}))
    return seen


def test_each_named_linear_reads_quantized_inputs_until_the_handles_are_removed():
    model, x = Two(), random(1, 5, 4)
    plain = model(x)
    scales = {"q": torch.tensor(0.5), "o": torch.tensor(0.25)}
    handles = quantize_inputs(model, scales, 8)
    q, k, o = ((linear.weight, linear.bias) for linear in model.children())
    inside = nn.functional.linear(fake_quantized(x, 0.5), *q) + nn.functional.linear(x, *k)
    expected = nn.functional.linear(fake_quantized(inside, 0.25), *o)
    assert torch.equal(model(x), expected)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(x), plain)


def test_a_tensor_that_two_linears_read_is_quantized_once_where_their_scales_agree():
    model, x = Two(), random(1, 5, 4)
    quantize_inputs(model, {"q": torch.tensor(0.5), "k": torch.tensor(0.5), "o": torch.tensor(0.5)}, 8)
    seen = inputs_seen(model)
    model(x)
    assert seen["q"] is seen["k"]
    assert seen["o"] is not seen["q"]


def test_linears_with_other_scales_read_other_numbers():
    model, x = Two(), random(1, 5, 4)
    quantize_inputs(model, {"q": torch.tensor(0.5), "k": torch.tensor(0.25)}, 8)
    seen = inputs_seen(model)
    model(x)
    assert torch.equal(seen["q"], fake_quantized(x, 0.5))
    assert torch.equal(seen["k"], fake_quantized(x, 0.25))


def test_a_value_computed_without_gradient_is_not_reused_with_one():
    model, x = Two(), random(1, 5, 4).requires_grad_()
    quantize_inputs(model, {"q": torch.tensor(0.01), "k": torch.tensor(0.01)}, 16)
    with torch.no_grad():
        model(x)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_scales_read_back_from_json_to_the_last_bit():
    scales = {f"layer.{i}": scale for i, scale in enumerate(random(0, 200).abs() / 32767)}
    stored = json.loads(json.dumps({"bits": 16, "scales": {name: float(s) for name, s in scales.items()}}))
    found, bits = read_scales(stored)
    assert bits == 16
    assert all(torch.equal(found[name], scale) for name, scale in scales.items())
    assert all(scale.dtype == torch.float32 for scale in found.values())
