"""The student's gradients against float64 autograd and torch's own fake-quantize ops."""

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step
from tests.unit.distill.students import Q, both_modes, float_model, free_rows, start_of, student


def straight_through(master: Tensor, step: Step, scheme: Weights, clips: bool) -> Tensor:
    """The fake-quantized weight in float64, whose gradient autograd finds: rounding passes it, clamping does not."""
    group = scheme.group or master.shape[1]
    scale, zero = (part.double().repeat_interleave(group, dim=1) for part in step)
    codes = master / scale
    codes = codes + (codes.round() - codes).detach() + zero
    half = 2 ** (scheme.bits - 1)
    low, high = (-half, half - 1) if scheme.symmetric else (0, 2 * half - 1)
    held = codes.clamp(low, high) if clips else codes + (codes.clamp(low, high) - codes).detach()
    return (held - zero) * scale


@both_modes
@pytest.mark.parametrize(
    ("name", "scheme", "policy"), [("llama", "W4", "ov"), ("phi3", "groups", "ov"), ("gpt-neox", "groups", "qk")]
)
def test_the_gradient_is_float64_autograds(name: str, scheme: str, policy: str, mode: str, tokens: Tensor):
    """Of the whole model, some of its weights beyond their grids, by each master: norms and biases included."""
    made, start = student(name, scheme, policy, mode), start_of(name, scheme)
    free = free_rows(name, scheme, policy)
    for key, master in made.masters.items():
        master.data *= 1.4 if key.removesuffix(".weight") in start.codes else 1.01
    made.refresh()
    made.model(input_ids=tokens, labels=tokens).loss.backward()
    made.collect_gradients()
    leaves = {key: master.detach().double().requires_grad_() for key, master in made.masters.items()}
    reference = float_model(name).double()
    parameters = {key: p.detach() for key, p in made.model.double().named_parameters()}
    clipped = 0
    for key, leaf in leaves.items():
        linear = key.removesuffix(".weight")
        if linear in start.codes:
            rows, kind = free[linear], start.schemes[linear]
            if mode == "static":
                step = Step(*(part[rows] for part in start.steps[linear]))
            else:
                step = weights.weight_step(leaf.detach().float(), kind)
            whole = start.weight(linear).double()
            whole[rows] = straight_through(leaf, step, kind, mode == "static")
            parameters[key] = whole
            inside = weights.quantize_and_tell(leaf.detach().float(), step, kind)[1]
            clipped += 0 if inside is None else int((~inside).sum())
        else:
            parameters[key] = leaf + (leaf.half() - leaf).detach()
    loss = torch.func.functional_call(reference, parameters, (), {"input_ids": tokens, "labels": tokens}).loss
    loss.backward()
    assert clipped > 50 or mode == "minmax"
    for key, leaf in leaves.items():
        expected, gradient = leaf.grad, made.masters[key].grad
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(
    "edge", [-9.0, -8.75, -8.5, -8.25, -8.0, -7.5, 6.5, 7.0, 7.25, 7.5, 7.75, 8.0], ids=lambda edge: f"{edge} steps"
)
def test_at_every_edge_of_the_static_grid_the_gradient_is_torch_per_channel_affines(
    tokens: Tensor, edge: float, symmetric: bool
):
    """On power of two scales, so that ties are exact."""
    start = start_of("llama", "W4A16")
    scale = {name: torch.full_like(step.scale, 2.0**-6) for name, step in start.steps.items()}
    zero = 0 if symmetric else 8
    made = student(
        steps={name: Step(values, torch.full_like(values, zero)) for name, values in scale.items()},
        schemes=dict.fromkeys(start.schemes, Weights(4, symmetric=symmetric)),
        codes={
            name: (codes + zero).to(torch.int8 if symmetric else torch.uint8) for name, codes in start.codes.items()
        },
    )
    master = made.masters[f"{Q}.weight"]
    master.data[:, 0] = edge * 2.0**-6
    made.refresh()
    made.model(input_ids=tokens[:1], labels=tokens[:1]).loss.backward()
    upstream = made.modules[f"{Q}.weight"].grad.clone()
    made.collect_gradients()
    leaf = master.detach().clone().requires_grad_()
    step, zeros = torch.full((len(leaf),), 2.0**-6), torch.full((len(leaf),), zero, dtype=torch.int32)
    value = torch.fake_quantize_per_channel_affine(leaf, step, zeros, 0, zero - 8, zero + 7)
    value.backward(upstream)
    assert upstream[:, 0].abs().min() > 0
    assert torch.equal(made.modules[f"{Q}.weight"], value)
    assert torch.equal(master.grad, leaf.grad)
    assert made.modules[f"{Q}.weight"].grad is None
