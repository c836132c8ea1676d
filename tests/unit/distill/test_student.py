"""What of a student learns, what stays as it was calibrated, and what it is finished as."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.models import forward, layout
from pipeline.quant import weights
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from tests.unit.distill.students import (
    Q,
    both_modes,
    every_case,
    float_model,
    free_rows,
    learn,
    start_of,
    student,
)


@every_case
def test_the_student_starts_as_the_calibrated_model(name: str, scheme: str, policy: str, tokens: Tensor):
    reference = float_model(name)
    start_of(name, scheme).put_into(reference)
    logits = student(name, scheme, policy).model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(logits, reference(input_ids=tokens, use_cache=False).logits)


@every_case
def test_masters_are_the_rows_that_learn_and_the_norms(name: str, scheme: str, policy: str):
    made, start = student(name, scheme, policy), start_of(name, scheme)
    free = free_rows(name, scheme, policy)
    expected = {f"{linear}.weight": start.latent[linear][rows] for linear, rows in free.items() if rows.any()}
    assert any(0 < rows.sum() < len(rows) for rows in free.values()) == (name != "llama")
    one_dimensional = {key for key, p in float_model(name).named_parameters() if p.ndim == 1}
    assert made.masters.keys() == made.modules.keys() == expected.keys() | one_dimensional
    assert all(torch.equal(made.masters[key], values) for key, values in expected.items())
    assert student(name, scheme, policy, norms=False).masters.keys() == expected.keys()
    assert all(master.dtype == torch.float32 for master in student(dtype=torch.bfloat16).masters.values())


@both_modes
@every_case
def test_frozen_rows_keep_their_codes_and_have_neither_gradient_nor_optimizer_state(
    name: str, scheme: str, policy: str, mode: str, tokens: Tensor
):
    made, start = student(name, scheme, policy, mode), start_of(name, scheme)
    learn(made, tokens)
    finished, free = made.finished(), free_rows(name, scheme, policy)
    for linear, rows in free.items():
        held = ~rows
        weight = made.model.get_submodule(linear).weight
        assert torch.equal(weight[held], start.weight(linear)[held])
        assert torch.equal(finished.codes[linear][held], start.codes[linear][held])
        assert all(
            torch.equal(a[held], b[held]) for a, b in zip(finished.steps[linear], start.steps[linear], strict=True)
        )
        assert finished.codes[linear].dtype == start.codes[linear].dtype
        if rows.any():
            assert not torch.equal(finished.codes[linear][rows], start.codes[linear][rows])
            assert len(made.masters[f"{linear}.weight"]) == rows.sum()
        else:
            assert f"{linear}.weight" not in made.masters
            assert not weight.requires_grad
            assert weight.grad is None


@both_modes
@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_a_quantized_head_keeps_its_codes(name: str, mode: str, tokens: Tensor):
    made, start = student(name, "mixed", "ov", mode), start_of(name, "mixed")
    learn(made, tokens)
    finished, head = made.finished(), layout.head(made.model).name
    assert head in start.codes
    assert f"{head}.weight" not in made.masters
    assert torch.equal(made.model.get_submodule(head).weight, start.weight(head))
    assert torch.equal(finished.codes[head], start.codes[head])
    assert all(torch.equal(a, b) for a, b in zip(finished.steps[head], start.steps[head], strict=True))
    embedding = next(key for key in start.floats if "embed" in key)
    assert torch.equal(finished.floats[embedding], start.floats[embedding])


@both_modes
@every_case
def test_finished_codes_are_the_masters_quantized(name: str, scheme: str, policy: str, mode: str, tokens: Tensor):
    made, start = student(name, scheme, policy, mode), start_of(name, scheme)
    learn(made, tokens)
    finished = made.finished()
    for linear, rows in free_rows(name, scheme, policy).items():
        if rows.any():
            master, kind = made.masters[f"{linear}.weight"].detach(), start.schemes[linear]
            step = weights.weight_step(master, kind)
            if mode == "static":
                step = Step(*(part[rows] for part in start.steps[linear]))
            assert all(torch.equal(a[rows], b) for a, b in zip(finished.steps[linear], step, strict=True))
            assert torch.equal(finished.codes[linear][rows].float(), weights.quantize(master, step, kind))
        assert torch.equal(made.model.get_submodule(linear).weight, finished.weight(linear))
    assert finished.latent == {}
    assert (finished.inputs, finished.kv_cache, finished.schemes) == (start.inputs, start.kv_cache, start.schemes)


@every_case
def test_the_finished_model_is_the_student(name: str, scheme: str, policy: str, tokens: Tensor):
    made = student(name, scheme, policy)
    learn(made, tokens)
    reference = float_model(name)
    made.finished().put_into(reference)
    logits = reference(input_ids=tokens, use_cache=False).logits
    assert torch.equal(logits, made.model(input_ids=tokens, use_cache=False).logits)


def test_norms_learn_and_the_embedding_does_not(calibrated: QuantizedModel, tokens: Tensor):
    made, start = student(), start_of("llama", "W4A16")
    learn(made, tokens)
    floats = made.finished().floats
    norm, embedding = "model.norm.weight", "model.embed_tokens.weight"
    assert torch.equal(floats[norm], made.masters[norm].detach().half())
    assert torch.equal(made.modules[norm], floats[norm].float())
    assert not torch.equal(floats[norm], start.floats[norm])
    assert torch.equal(floats[embedding], start.floats[embedding])
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight


def test_a_linear_that_stays_in_float_does_not_learn(tokens: Tensor):
    made, start = student("llama", "mixed", "qkv"), start_of("llama", "mixed")
    learn(made, tokens)
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(made.finished().floats[name], start.floats[name])


def test_a_forward_in_bfloat16_reads_weights_in_bfloat16():
    for name in (Q, "model.layers.1.self_attn.o_proj"):  # one learns, one is frozen
        weight = student(dtype=torch.bfloat16).model.get_submodule(name).weight
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, start_of("llama", "W4A16").weight(name).bfloat16())


@pytest.mark.parametrize(("name", "policy"), [("llama", "none"), ("gpt-neox", "v")])
def test_training_leaves_the_calibrated_codes_steps_and_floats_alone(name: str, policy: str, tokens: Tensor):
    start = start_of(name, "fine")
    before = {
        "codes": {key: t.clone() for key, t in start.codes.items()},
        "floats": {key: t.clone() for key, t in start.floats.items()},
        "scale": {key: step.scale.clone() for key, step in start.steps.items()},
        "zero": {key: step.zero.clone() for key, step in start.steps.items()},
    }
    made = student(name, "fine", policy, "minmax")
    learn(made, tokens)
    made.finished()
    after = {"codes": start.codes, "floats": start.floats}
    after |= {part: {key: getattr(step, part) for key, step in start.steps.items()} for part in ("scale", "zero")}
    assert all(torch.equal(after[part][key], t) for part, kept in before.items() for key, t in kept.items())


def test_a_start_without_latent_weights_is_refused_unless_all_of_it_is_frozen():
    with pytest.raises(ValueError, match=r"no latent weights to train from.*k_proj"):
        student(latent={})
    start = start_of("phi3", "W4A16")
    fused = {name: values.clone() for name, values in start.latent.items() if "o_proj" not in name}
    assert student("phi3", "W4A16", "o", latent=fused).masters
    with pytest.raises(ValueError, match=r"\['model.layers.0.self_attn.qkv_proj'"):
        student("phi3", "W4A16", "ov", latent={n: v for n, v in fused.items() if "0.self_attn.qkv" not in n})


def test_a_parameter_without_gradient_is_named():
    with pytest.raises(ValueError, match=r"q_proj\.weight got no gradient"):
        student().collect_gradients()


def test_a_bias_that_only_chooses_has_a_gradient_of_zero(tokens: Tensor):
    """As a router's has that is added before the choice of experts, and not to their weights."""
    made = student()
    made.masters["bias"], made.modules["bias"] = (nn.Parameter(torch.ones(3)) for _ in range(2))
    forward.hidden_states(made.model, tokens).sum().backward()
    made.collect_gradients()
    assert torch.equal(made.masters["bias"].grad, torch.zeros(3))


def test_an_embedding_and_the_head_that_is_tied_to_it_learn_where_they_may(tokens: Tensor):
    made, start = student(embeddings=True), start_of("llama", "W4A16")
    learn(made, tokens)
    finished, embedding = made.finished(), "model.embed_tokens.weight"
    assert not torch.equal(finished.floats[embedding], start.floats[embedding])
    assert torch.equal(finished.floats[embedding], made.masters[embedding].detach().half())
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    head = student("llama", "mixed", "qkv", embeddings=True)  # whose head is quantized, and stays as it is
    assert {key for key in head.masters if "embed" in key or "head" in key} == {embedding}
    apart = student("gpt-neox", "fine", "v", embeddings=True)
    own_head = f"{layout.head(apart.model).name}.weight"
    assert {"gpt_neox.embed_in.weight", own_head} < apart.masters.keys()
