"""The student against torch's own fake-quantize ops, float64 autograd, and the codes that it must not touch."""

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import models
from pipeline.calibration.driver import Options, calibrate
from pipeline.distill.freeze import Frozen, frozen_rows
from pipeline.distill.student import Learns, Student, prepare
from pipeline.quant import weights
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from pipeline.scheme import Activations, KVCache, Override, Scheme, Weights, from_short
from tests import tiny
from tests.families import family

Q = "model.layers.0.self_attn.q_proj"
FINE = Scheme(Weights(3, symmetric=False, group=8), Activations(8, symmetric=False), KVCache(4, group=4))
MIXED = Scheme(
    Weights(4),
    Activations(8, dynamic=True),
    overrides=(
        Override("*.layers.0.*", weights=Weights(8, group=16)),
        Override("down", weights=Weights(0)),
        Override("lm_head", weights=Weights(8, symmetric=False)),
    ),
)
SCHEMES = {
    "W4A16": from_short("W4A16"),
    "fine": FINE,
    "mixed": MIXED,
    "W4": Scheme(Weights(4)),
    "groups": Scheme(Weights(3, symmetric=False, group=8)),
}
CASES = [  # family, scheme, freeze policy: of Phi-3 and GPT-NeoX a part of the fused projections is frozen
    ("llama", "W4A16", "ov"),
    ("llama", "fine", "mlp"),
    ("llama", "mixed", "qkv"),
    ("phi3", "W4A16", "ov"),
    ("phi3", "fine", "qk"),
    ("gpt-neox", "fine", "v"),
    ("gpt-neox", "mixed", "ov"),
]
every_case = pytest.mark.parametrize(("name", "scheme", "policy"), CASES)
both_modes = pytest.mark.parametrize("mode", ["static", "minmax"])


def float_model(name: str) -> PreTrainedModel:
    return tiny.llama() if name == "llama" else family(name)


@cache
def start_of(name: str, scheme: str) -> QuantizedModel:
    """The calibrated model. Training changes latent weights: `student` copies them."""
    tokens = torch.randint(3, 259, (6, 20), generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    options = Options("gptq", {}, batch=6, measure=False)
    return calibrate(float_model(name), tokens, valid, SCHEMES[scheme], options, None, lambda: None).model


def frozen_of(name: str, start: QuantizedModel, policy: str) -> Frozen:
    return frozen_rows(policy, [linear for linear in models.linears(float_model(name)) if linear.name in start.codes])


def student(
    name: str = "llama",
    scheme: str = "W4A16",
    policy: str = "ov",
    mode: str = "static",
    norms: bool = True,
    dtype: torch.dtype = torch.float32,
    embeddings: bool = False,
    **changes: object,
) -> Student:
    start = start_of(name, scheme)
    latent = {key: values.clone() for key, values in start.latent.items()}
    own = dataclasses.replace(start, **{"latent": latent, **changes})
    return prepare(float_model(name), own, frozen_of(name, start, policy), Learns(mode, norms, embeddings), dtype)


def learn(made: Student, tokens: Tensor, lr: float = 0.05, steps: int = 3) -> None:
    """A few AdamW steps of cross-entropy."""
    optimizer = torch.optim.AdamW(made.masters.values(), lr=lr)
    for _ in range(steps):
        made.model(input_ids=tokens, labels=tokens).loss.backward()
        made.collect_gradients()
        optimizer.step()
        made.refresh()


def free_rows(name: str, scheme: str, policy: str) -> dict[str, Tensor]:
    """Which rows of each linear in the decoder learn: bool [out]."""
    start = start_of(name, scheme)
    frozen = frozen_of(name, start, policy)
    found = {}
    for linear, codes in start.codes.items():
        if linear in start.latent:
            free = torch.ones(len(codes), dtype=torch.bool)
            if linear in frozen:
                free[slice(None) if frozen[linear] is None else frozen[linear]] = False
            found[linear] = free
    return found


@every_case
def test_the_student_starts_as_the_calibrated_model(name: str, scheme: str, policy: str, tokens: Tensor):
    reference = float_model(name)
    start_of(name, scheme).put_into(reference)
    found = student(name, scheme, policy).model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(found, reference(input_ids=tokens, use_cache=False).logits)


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
    finished, head = made.finished(), models.head(made.model).name
    assert head in start.codes
    assert f"{head}.weight" not in made.masters
    assert torch.equal(made.model.get_submodule(head).weight, start.weight(head))
    assert torch.equal(finished.codes[head], start.codes[head])
    assert all(torch.equal(a, b) for a, b in zip(finished.steps[head], start.steps[head], strict=True))
    embedding = next(key for key in start.floats if "embed" in key)
    assert torch.equal(finished.floats[embedding], start.floats[embedding])


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
            given = start.steps[linear] if mode == "static" else None
            step = Step(*(part[rows] for part in given)) if given else weights.weight_step(leaf.detach().float(), kind)
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
        expected, found = leaf.grad, made.masters[key].grad
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


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
    found = reference(input_ids=tokens, use_cache=False).logits
    assert torch.equal(found, made.model(input_ids=tokens, use_cache=False).logits)


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
    given = {"input_ids": tokens, "labels": tokens}
    torch.func.functional_call(float_model(name).double(), parameters, (), given).loss.backward()
    checked = 0
    for key in (key for key in leaves if key.endswith(".scale")):
        linear = key.removesuffix(".scale")
        kind, width = start.schemes[linear], leaves[f"{linear}.weight"].shape[1]
        top = 2 ** (kind.bits - 1) - 1 if kind.symmetric else 2**kind.bits - 1
        for part, factor in ((f"{linear}.weight", 1.0), (key, ((kind.group or width) * top) ** -0.5)):
            expected, found = leaves[part].grad * factor, made.masters[part].grad
            largest = float(expected.abs().max())
            torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-4 * largest)
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
            assert torch.equal(finished.steps[linear].scale[rows], scale.clamp(min=2.0**-14).half().float())
            assert not torch.equal(finished.steps[linear].scale[rows], start.steps[linear].scale[rows])
    reference = float_model(name)
    finished.put_into(reference)
    expected = made.model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(reference(input_ids=tokens, use_cache=False).logits, expected)


def test_a_scale_that_would_fall_to_zero_stays_a_float16_above_it(tokens: Tensor):
    made = student(mode="learned")
    made.masters[f"{Q}.scale"].data[0] = -1.0
    made.refresh()
    assert made.step(Q).scale[0] == 2.0**-14
    assert made.modules[f"{Q}.weight"].isfinite().all()


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
    own_head = f"{models.head(apart.model).name}.weight"
    assert {"gpt_neox.embed_in.weight", own_head} < apart.masters.keys()
