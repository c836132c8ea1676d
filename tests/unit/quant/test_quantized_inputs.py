"""Linears of a model that read quantized inputs, one for all that read alike."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import Quantizer, quantize_inputs
from tests.unit.quant.quantizers import fake_quantized, static, step_of
from tests.unit.quant.strategies import random


class Three(nn.Module):
    """Two linears that read the same tensor, and one that reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) + self.k(x))


def inputs_seen(model: Three) -> dict[str, Tensor]:
    """The input that each linear really computes with, by name; filled when the model runs."""
    inputs: dict[str, Tensor] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, args, __, name=name: inputs.update({name: args[0]}))
    return inputs


def test_each_named_linear_reads_quantized_inputs_until_the_handles_are_removed():
    model, x = Three(), random(1, 5, 4)
    plain = model(x)
    handles = quantize_inputs(model, {"q": static(0.5), "o": static(0.25)})
    q, k, o = ((linear.weight, linear.bias) for linear in model.children())
    inside = nn.functional.linear(fake_quantized(x, 0.5), *q) + nn.functional.linear(x, *k)
    expected = nn.functional.linear(fake_quantized(inside, 0.25), *o)
    assert torch.equal(model(x), expected)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(x), plain)


ALIKE = [
    (static(0.5), static(0.5)),
    (Quantizer(Activations(8, dynamic=True)), Quantizer(Activations(8, dynamic=True))),
    (Quantizer(Activations(4, False), step_of(0.5, 3)), Quantizer(Activations(4, False), step_of(0.5, 3))),
]
UNLIKE = [
    (static(0.5), static(0.25)),
    (static(0.5), static(0.5, Activations(4))),
    (static(0.5), Quantizer(Activations(8, dynamic=True))),
    (Quantizer(Activations(8, dynamic=True)), Quantizer(Activations(8, False, dynamic=True))),
    (Quantizer(Activations(4, False), step_of(0.5, 3)), Quantizer(Activations(4, False), step_of(0.5, 4))),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_a_tensor_that_two_linears_read_alike_is_quantized_once(pair: tuple[Quantizer, Quantizer]):
    model, x = Three(), random(1, 5, 4)
    assert pair[0] == pair[1]
    quantize_inputs(model, {"q": pair[0], "k": pair[1], "o": pair[0]})
    inputs = inputs_seen(model)
    model(x)
    assert inputs["q"] is inputs["k"]
    assert torch.equal(inputs["q"], pair[0](x))
    assert inputs["o"] is not inputs["q"]


@pytest.mark.parametrize("pair", UNLIKE)
def test_linears_with_other_grids_read_other_numbers(pair: tuple[Quantizer, Quantizer]):
    model, x = Three(), random(1, 5, 4, spread=5)
    assert pair[0] != pair[1]
    quantize_inputs(model, {"q": pair[0], "k": pair[1]})
    inputs = inputs_seen(model)
    model(x)
    assert torch.equal(inputs["q"], pair[0](x))
    assert torch.equal(inputs["k"], pair[1](x))
    assert not torch.equal(inputs["q"], inputs["k"])


def test_another_tensor_is_quantized_anew():
    model, inputs = Three(), []
    quantize_inputs(model, {"q": static(0.5)})
    model.q.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    batches = [random(seed, 5, 4) for seed in (1, 2, 1)]
    for x in batches:
        model(x)
    assert all(torch.equal(quantized, fake_quantized(x, 0.5)) for quantized, x in zip(inputs, batches, strict=True))


def test_sharing_an_input_changes_no_gradient():
    def gradients(shared: bool) -> list[Tensor]:
        model, x = Three(), random(1, 5, 4).requires_grad_()
        for names in [("q", "k")] if shared else [("q",), ("k",)]:
            quantize_inputs(model, dict.fromkeys(names, static(2.0**-7)))
        model(x).square().sum().backward()
        return [x.grad, *(p.grad for p in model.parameters())]

    shared, apart = gradients(True), gradients(False)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(shared, apart, strict=True))
    assert (shared[0] == 0).any()  # some values are clipped


def test_a_value_computed_without_gradient_is_not_reused_with_one():
    model, x = Three(), random(1, 5, 4).requires_grad_()
    quantize_inputs(model, dict.fromkeys("qk", static(0.01, Activations(16))))
    with torch.no_grad():
        model(x)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0
