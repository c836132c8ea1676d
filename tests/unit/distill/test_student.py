import dataclasses

import pytest
import torch
from torch import Tensor

from pipeline import models
from pipeline.distill.freeze import frozen_linears
from pipeline.distill.student import Student, prepare
from pipeline.quant.grid import channel_scale, quantize
from pipeline.quant.model import QuantizedModel
from tests import tiny

Q = "model.layers.0.self_attn.q_proj"


def student(
    start: QuantizedModel,
    policy: str = "ov",
    mode: str = "static",
    norms: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Student:
    model = tiny.llama()
    own = dataclasses.replace(start, latent={name: latent.clone() for name, latent in start.latent.items()})
    return prepare(model, own, frozen_linears(policy, models.linears(model)), mode, norms, dtype)


def learn(made: Student, tokens: Tensor, lr: float = 0.05, steps: int = 3) -> None:
    """A few AdamW steps of cross-entropy."""
    optimizer = torch.optim.AdamW(made.masters.values(), lr=lr)
    for _ in range(steps):
        made.model(input_ids=tokens, labels=tokens).loss.backward()
        made.collect_gradients()
        optimizer.step()
        made.refresh()


def test_the_student_starts_as_the_calibrated_model(calibrated: QuantizedModel, tokens: Tensor):
    reference = tiny.llama()
    calibrated.put_into(reference)
    assert torch.equal(student(calibrated).model(input_ids=tokens).logits, reference(input_ids=tokens).logits)


def test_masters_are_the_trained_linears_and_the_norms(calibrated: QuantizedModel):
    made = student(calibrated, "ov")
    names = {name for name, _ in tiny.llama().named_parameters()}
    expected = {n for n in names if not any(part in n for part in ("o_proj", "v_proj", "embed"))}
    assert made.masters.keys() == made.modules.keys() == expected
    assert student(calibrated, "ov", norms=False).masters.keys() == {n for n in expected if "norm" not in n}
    assert all(master.dtype == torch.float32 for master in student(calibrated, dtype=torch.bfloat16).masters.values())


def test_frozen_linears_keep_their_codes_and_have_neither_gradient_nor_optimizer_state(
    calibrated: QuantizedModel, tokens: Tensor
):
    made = student(calibrated, "ov")
    learn(made, tokens)
    finished = made.finished()
    assert len(made.frozen) == 4
    for name in made.frozen:
        weight = made.model.get_submodule(name).weight
        assert weight.grad is None
        assert not weight.requires_grad
        assert f"{name}.weight" not in made.masters
        assert torch.equal(weight, calibrated.weight(name))
        assert torch.equal(finished.codes[name], calibrated.codes[name])
        assert torch.equal(finished.scales[name], calibrated.scales[name])
    trained = calibrated.codes.keys() - made.frozen
    assert all(not torch.equal(finished.codes[name], calibrated.codes[name]) for name in trained)


def test_the_gradient_goes_straight_through_to_the_masters(calibrated: QuantizedModel, tokens: Tensor):
    """The master's gradient is that of the dequantized weight, zero where the static range clips."""
    made = student(calibrated)
    scale = calibrated.scales[Q]
    units = torch.tensor([-20.0, -8.6, -8.4, -8.0, 0.0, 7.0, 7.4, 7.6, 20.0])
    inside = torch.tensor([0, 0, 1, 1, 1, 1, 1, 0, 0])
    made.masters[f"{Q}.weight"].data[:, : len(units)] = units * scale
    made.refresh()
    loss = made.model(input_ids=tokens, labels=tokens).loss
    (expected,) = torch.autograd.grad(loss, made.modules[f"{Q}.weight"], retain_graph=True)
    loss.backward()
    made.collect_gradients()
    mask = torch.ones_like(expected)
    mask[:, : len(units)] = inside.float()
    assert torch.equal(made.masters[f"{Q}.weight"].grad, expected * mask)
    assert made.modules[f"{Q}.weight"].grad is None


@pytest.mark.parametrize(
    "edge", [-9.0, -8.75, -8.5, -8.25, -8.0, -7.5, 6.5, 7.0, 7.25, 7.5, 7.75, 8.0], ids=lambda edge: f"{edge} steps"
)
def test_at_every_edge_of_the_static_grid_the_gradient_is_torch_per_channel_affines(
    calibrated: QuantizedModel, tokens: Tensor, edge: float
):
    """On power of two scales, so that ties are exact."""
    scales = {name: torch.full_like(scale, 2.0**-6) for name, scale in calibrated.scales.items()}
    made = student(dataclasses.replace(calibrated, scales=scales))
    master = made.masters[f"{Q}.weight"]
    master.data[:, 0] = edge * 2.0**-6
    made.refresh()
    made.model(input_ids=tokens[:1], labels=tokens[:1]).loss.backward()
    upstream = made.modules[f"{Q}.weight"].grad.clone()
    made.collect_gradients()
    leaf = master.detach().clone().requires_grad_()
    step, zero = torch.full((len(leaf),), 2.0**-6), torch.zeros(len(leaf), dtype=torch.int32)
    value = torch.fake_quantize_per_channel_affine(leaf, step, zero, 0, -8, 7)
    value.backward(upstream)
    assert upstream[:, 0].abs().min() > 0
    assert torch.equal(made.modules[f"{Q}.weight"], value)
    assert torch.equal(master.grad, leaf.grad)


def test_min_max_scales_follow_the_masters_and_never_clip(calibrated: QuantizedModel, tokens: Tensor):
    made = student(calibrated, mode="minmax")
    master = made.masters[f"{Q}.weight"]
    master.data[0] *= 5
    master.data[1] = 0
    made.refresh()
    weight = made.modules[f"{Q}.weight"]
    assert torch.equal(made.scale(Q), channel_scale(master.data, 4))
    assert weight[0].abs().max() == 7 * made.scale(Q)[0]
    assert torch.equal(weight[1], torch.zeros_like(weight[1]))
    made.model(input_ids=tokens, labels=tokens).loss.backward()
    upstream = weight.grad.clone()
    made.collect_gradients()
    assert torch.equal(master.grad, upstream)


@pytest.mark.parametrize("mode", ["static", "minmax"])
def test_finished_codes_are_the_masters_quantized(calibrated: QuantizedModel, tokens: Tensor, mode: str):
    made = student(calibrated, mode=mode)
    learn(made, tokens)
    finished = made.finished()
    for name in calibrated.codes.keys() - made.frozen:
        master = made.masters[f"{name}.weight"].detach()
        scale = calibrated.scales[name] if mode == "static" else channel_scale(master, 4)
        assert torch.equal(finished.scales[name], scale)
        assert torch.equal(finished.codes[name].float(), quantize(master, scale, 4))
        assert torch.equal(made.modules[f"{name}.weight"], finished.weight(name))
    assert finished.latent == {}
    assert finished.activation_scales == calibrated.activation_scales


def test_norms_learn_and_the_embedding_does_not(calibrated: QuantizedModel, tokens: Tensor):
    made = student(calibrated)
    learn(made, tokens)
    floats = made.finished().floats
    norm, embedding = "model.norm.weight", "model.embed_tokens.weight"
    assert torch.equal(floats[norm], made.masters[norm].detach().half())
    assert not torch.equal(floats[norm], calibrated.floats[norm])
    assert torch.equal(floats[embedding], calibrated.floats[embedding])
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight


def test_a_forward_in_bfloat16_reads_weights_in_bfloat16(calibrated: QuantizedModel):
    made = student(calibrated, dtype=torch.bfloat16)
    assert made.modules[f"{Q}.weight"].dtype == torch.bfloat16
    assert torch.equal(made.modules[f"{Q}.weight"], calibrated.weight(Q).bfloat16())


def test_training_leaves_the_calibrated_codes_scales_and_floats_alone(calibrated: QuantizedModel, tokens: Tensor):
    parts = ("codes", "scales", "activation_scales", "floats")
    before = {part: {name: t.clone() for name, t in getattr(calibrated, part).items()} for part in parts}
    learn(student(calibrated, "none", "minmax"), tokens)
    assert all(torch.equal(getattr(calibrated, part)[n], t) for part in parts for n, t in before[part].items())


def test_a_start_without_latent_weights_is_refused(calibrated: QuantizedModel):
    bare = dataclasses.replace(calibrated, latent={})
    with pytest.raises(ValueError, match=r"no latent weights to train from.*q_proj"):
        student(bare)


def test_a_parameter_without_gradient_is_named(calibrated: QuantizedModel):
    with pytest.raises(ValueError, match="got no gradient"):
        student(calibrated).collect_gradients()
