"""Scales that follow the weights, or learn: against their definitions and LSQ's gradient in float64."""

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant.grid import stored_scale
from tests.unit.distill.students import SCHEMES, Q, every_case, float_model, free_rows, learn, start_of, student


@pytest.mark.parametrize("scheme", ["W4A16", "fine"])
def test_min_max_scales_follow_the_masters_and_never_clip(scheme: str, tokens: Tensor):
    made, kind = student("llama", scheme, mode="minmax"), SCHEMES[scheme].weights
    master = made.masters[f"{Q}.weight"]
    master.data[0] *= 5
    master.data[1] = 0
    master.data[2] = torch.tensor([-3.5, 3.5] * 16)  # both ends lie half a step off an asymmetric grid of step 1
    made.refresh()
    weight, step = made.modules[f"{Q}.weight"], made.step(Q)
    values = master.detach().unflatten(1, (-1, kind.group or 32))
    if kind.symmetric:
        assert torch.equal(step.scale, (values.abs().amax(dim=2) / 7).half().float().where(values.any(dim=2), 1))
        assert weight[0].abs().max() == 7 * step.scale[0]
    else:
        span = values.amax(dim=2).clamp(min=0) - values.amin(dim=2).clamp(max=0)
        assert torch.equal(step.scale, (span / 7).half().float().where(values.any(dim=2), 1))
    assert torch.equal(weight[1], torch.zeros_like(weight[1]))
    assert ((weight - master).abs() <= 0.51 * step.scale.repeat_interleave(kind.group or 32, dim=1)).all()
    made.model(input_ids=tokens, labels=tokens).loss.backward()
    upstream = weight.grad.clone()
    made.collect_gradients()
    assert torch.equal(master.grad, upstream)


def learned_weight(master: Tensor, scale: Tensor, zero: Tensor, scheme: Weights) -> Tensor:
    """LSQ in float64: rounding passes the gradient on, clamping does not, and the scale takes part in both."""
    group = scheme.group or master.shape[1]
    stored = scale + (scale.half() - scale).detach()  # rounded as the export stores it, its gradient passed on
    wide, zeros = (part.repeat_interleave(group, dim=1) for part in (stored, zero.double()))
    codes = master / wide
    codes = codes + (codes.round() - codes).detach() + zeros
    half = 2 ** (scheme.bits - 1)
    low, high = (-half, half - 1) if scheme.symmetric else (0, 2 * half - 1)
    return (codes.clamp(low, high) - zeros) * wide


@pytest.mark.parametrize(
    ("name", "scheme", "policy"), [("llama", "W4", "ov"), ("phi3", "groups", "ov"), ("gpt-neox", "groups", "qk")]
)
def test_learned_scales_have_lsqs_gradient(name: str, scheme: str, policy: str, tokens: Tensor):
    """float64 autograd through the fake-quantized weight, over sqrt(N Q); that of the weights beside it."""
    made, start = student(name, scheme, policy, "learned"), start_of(name, scheme)
    free = free_rows(name, scheme, policy)
    for key, master in made.masters.items():
        if key.removesuffix(".weight") in start.codes:
            master.data *= 1.4
    made.refresh()
    made.model(input_ids=tokens, labels=tokens).loss.backward()
    made.collect_gradients()
    leaves = {key: master.detach().double().requires_grad_() for key, master in made.masters.items()}
    parameters = {key: p.detach() for key, p in made.model.double().named_parameters()}
    for linear, rows in free.items():
        if rows.any():
            kind, whole = start.schemes[linear], start.weight(linear).double()
            master, scale = leaves[f"{linear}.weight"], leaves[f"{linear}.scale"]
            whole[rows] = learned_weight(master, scale, start.steps[linear].zero[rows], kind)
            parameters[f"{linear}.weight"] = whole
    batch = {"input_ids": tokens, "labels": tokens}
    torch.func.functional_call(float_model(name).double(), parameters, (), batch).loss.backward()
    checked = 0
    for key in (key for key in leaves if key.endswith(".scale")):
        linear = key.removesuffix(".scale")
        kind, width = start.schemes[linear], leaves[f"{linear}.weight"].shape[1]
        top = 2 ** (kind.bits - 1) - 1 if kind.symmetric else 2**kind.bits - 1
        for part, factor in ((f"{linear}.weight", 1.0), (key, ((kind.group or width) * top) ** -0.5)):
            expected, gradient = leaves[part].grad * factor, made.masters[part].grad
            largest = float(expected.abs().max())
            torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=1e-4 * largest)
        checked += 1
    assert checked == sum(rows.any() for rows in free.values())


@every_case
def test_learned_scales_are_what_the_export_stores(name: str, scheme: str, policy: str, tokens: Tensor):
    made, start = student(name, scheme, policy, "learned"), start_of(name, scheme)
    learn(made, tokens, lr=0.01)
    finished, free = made.finished(), free_rows(name, scheme, policy)
    for linear, rows in free.items():
        assert torch.equal(made.model.get_submodule(linear).weight, finished.weight(linear))
        assert torch.equal(finished.steps[linear].scale[~rows], start.steps[linear].scale[~rows])
        if rows.any():
            scale = made.masters[f"{linear}.scale"].detach()
            assert torch.equal(finished.steps[linear].scale[rows], stored_scale(scale, torch.float16))
            assert not torch.equal(finished.steps[linear].scale[rows], start.steps[linear].scale[rows])
    reference = float_model(name)
    finished.put_into(reference)
    expected = made.model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(reference(input_ids=tokens, use_cache=False).logits, expected)


def test_a_scale_that_would_fall_to_zero_stays_a_float16_above_it(tokens: Tensor):
    made = student(mode="learned")
    made.masters[f"{Q}.scale"].data[0] = -1.0
    made.refresh()
    assert made.step(Q).scale[0] == 2.0**-24
    assert made.modules[f"{Q}.weight"].isfinite().all()


def test_a_learned_scale_keeps_its_sign(tokens: Tensor):
    """One below zero that grows past it stays a float16 below it; another is stored as it is."""
    made = student(mode="learned")
    calibrated, learned = made.steps[Q].scale, made.masters[f"{Q}.scale"].data
    calibrated[:2] *= -1
    learned[0], learned[1] = 1.0, -0.5
    made.refresh()
    assert made.step(Q).scale[:2].flatten().tolist() == [-(2.0**-24), -0.5]
    assert (made.step(Q).scale[2:] > 0).all()
