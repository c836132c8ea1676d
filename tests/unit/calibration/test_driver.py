"""Calibration layer by layer against whole forwards of the same model, in every layout that a family has."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import artifacts, models
from pipeline.calibration import driver
from pipeline.calibration.driver import PTQ_METHODS, Calibrated, Options, calibrate, plan
from pipeline.calibration.rescale import RESCALINGS
from pipeline.quant.activations import STEP_DTYPE
from pipeline.quant.grid import Grid
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.methods import ROUNDINGS, Rounded, rtn
from pipeline.quant.model import QuantizedModel, quantize_signals
from pipeline.quant.observers import Observed, static_step
from pipeline.scheme import Activations, KVCache, Override, Scheme, Weights, from_short
from tests import tiny
from tests.families import family

Q = "model.layers.0.self_attn.q_proj"
W4A16 = from_short("W4A16")
LAYOUTS = ["llama", "mistral", "qwen2-window", "phi3", "gpt-neox", "stablelm-2", "opt", "falcon-7b", "bloom", "mamba"]
WITH_CACHE = LAYOUTS[:7]  # the others compute their attention themselves


def run(
    tokens: Tensor,
    valid: Tensor,
    method: str = "gptq",
    scheme: Scheme = W4A16,
    model: PreTrainedModel | None = None,
    scratch: Path | None = None,
    advance: Callable[[], object] = lambda: None,
    **options: Any,
) -> Calibrated:
    """Calibrate the tiny Llama, or another model."""
    chosen = Options(**{"method": method, "gptq": {}, "batch": 4, **options})
    return calibrate(tiny.llama() if model is None else model, tokens, valid, scheme, chosen, scratch, advance)


def inputs_of(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What each linear reads at valid positions in a forward of all sequences: [tokens, in]."""
    seen: dict[str, Tensor] = {}
    handles = models.on_layer_inputs(
        model,
        models.linears(model),
        lambda linear, x: seen.update({linear.name: x.flatten(0, -2)[valid.flatten()]}),
    )
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def with_layers_quantized(model: PreTrainedModel, quantized: QuantizedModel, below: int) -> PreTrainedModel:
    """A float model with float16 embeddings and norms, and quantized weights in the layers before `below`."""
    for name, values in quantized.floats.items():
        model.get_parameter(name).copy_(values)
    for linear in models.linears(model):
        if linear.layer < below and linear.name in quantized.codes:
            model.get_submodule(linear.name).weight.copy_(quantized.weight(linear.name))
    return model


@pytest.fixture
def hessians(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The weights that GPTQ is given, and the Hessians, in the order of the linears."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(weight: Tensor, hessian: Tensor, scheme: Weights, **options: Any) -> Rounded:
        seen.append((weight.clone(), hessian.clone()))
        return sound(weight, hessian, scheme, **options)

    sound = ROUNDINGS["gptq"]
    monkeypatch.setitem(ROUNDINGS, "gptq", spy)
    return seen


@pytest.mark.parametrize(("name", "kv"), [*((name, 0) for name in LAYOUTS), *((name, 4) for name in WITH_CACHE)])
def test_each_weight_is_rounded_on_the_inputs_from_the_quantized_layers_before(
    hessians: list[tuple[Tensor, Tensor]], tokens: Tensor, valid: Tensor, name: str, kv: Any
):
    """Those of the layer's own linears come from its float weights."""
    scheme = Scheme(Weights(4), Activations(16), KVCache(kv))
    quantized = run(tokens, valid, "gptq", scheme, family(name)).model
    linears = models.linears(family(name))
    assert len(hessians) == len(linears)
    for layer in (0, 1):
        model = with_layers_quantized(family(name), quantized, below=layer)
        if kv:
            quantize_cache(model, scheme.kv_cache)
        inputs = inputs_of(model, tokens, valid)
        for linear, (weight, hessian) in zip(linears, hessians, strict=True):
            if linear.layer == layer:
                x = inputs[linear.name].double()
                expected = (x.T @ x).float()
                assert torch.equal(weight, model.get_submodule(linear.name).weight)
                torch.testing.assert_close(hessian, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("activations", [Activations(16), Activations(8, symmetric=False)], ids=["INT16", "UINT8"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_static_ranges_are_the_extremes_in_the_quantized_model(
    tokens: Tensor, valid: Tensor, name: str, activations: Activations
):
    kv = KVCache(4 if name in WITH_CACHE else 0)
    quantized = run(tokens, valid, "rtn", Scheme(Weights(4), activations, kv), family(name), measure=False).model
    model = with_layers_quantized(family(name), quantized, below=2)
    quantize_signals(model, {}, kv)
    inputs = inputs_of(model, tokens, valid)
    assert quantized.inputs.keys() == inputs.keys()
    for linear, x in inputs.items():
        assert quantized.inputs[linear].scheme == activations
        expected = Grid(activations.bits, activations.symmetric).step(x.min(), x.max(), STEP_DTYPE)
        found = quantized.inputs[linear].step
        assert found.scale.item() == pytest.approx(expected.scale.item(), rel=1e-4)
        assert abs(found.zero - expected.zero) <= 1  # of 255: a range's float32 noise may move it by one
        assert found.scale.shape == found.zero.shape == ()


@pytest.mark.parametrize("method", PTQ_METHODS)
def test_whatever_the_method_the_ranges_are_those_of_the_model_that_it_gives(
    tokens: Tensor, valid: Tensor, method: str
):
    scheme = from_short("W4A16KV4")
    quantized = run(tokens, valid, method, scheme).model
    model = tiny.llama()
    quantized.put_into(model)()
    quantize_cache(model, scheme.kv_cache)
    for linear, x in inputs_of(model, tokens, valid).items():
        assert quantized.inputs[linear].step.scale.item() == pytest.approx(x.abs().max().item() / 32767, rel=1e-4)


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_other_observers_see_every_valid_value_once(tokens: Tensor, valid: Tensor, observer: Any):
    activations = Activations(8, observer=observer, percentile=90.0)
    quantized = run(tokens, valid, "rtn", Scheme(Weights(4), activations)).model
    for linear, x in inputs_of(with_layers_quantized(tiny.llama(), quantized, 2), tokens, valid).items():
        seen = Observed()
        seen.see_range(x)
        seen.see_values(x)
        expected = static_step(seen, activations).scale.item()
        assert quantized.inputs[linear].step.scale.item() == pytest.approx(expected, rel=0.01)
        assert expected < 0.8 * x.abs().max() / 127 or observer == "mse"


def test_dynamic_inputs_have_no_range(tokens: Tensor, valid: Tensor):
    found = run(tokens, valid, "rtn", from_short("W4A8")).model.inputs
    assert len(found) == 14
    assert all(
        quantizer.step is None and quantizer.scheme == Activations(8, dynamic=True) for quantizer in found.values()
    )


def test_inputs_may_stay_in_float(tokens: Tensor, valid: Tensor):
    assert run(tokens, valid, scheme=from_short("W8")).model.inputs == {}


def test_positions_that_hold_no_text_are_not_looked_at(calibrated: QuantizedModel, tokens: Tensor, valid: Tensor):
    again = run(tokens.where(valid, (tokens + 1) % 259), valid).model
    assert_same(again, calibrated)
    everything = run(tokens, torch.ones_like(valid)).model
    assert everything.inputs != calibrated.inputs


@pytest.mark.parametrize("batch", [1, 6])
def test_the_batch_changes_only_the_order_of_sums(
    calibrated: QuantizedModel, tokens: Tensor, valid: Tensor, batch: int
):
    again = run(tokens, valid, batch=batch).model
    same = [(again.codes[name] == codes).float().mean().item() for name, codes in calibrated.codes.items()]
    assert min(same) > 0.98
    for name, quantizer in calibrated.inputs.items():
        assert again.inputs[name].step.scale.item() == pytest.approx(quantizer.step.scale.item(), rel=0.02)


def test_a_forward_in_bfloat16_sees_nearly_the_same_ranges(calibrated: QuantizedModel, tokens: Tensor, valid: Tensor):
    again = run(tokens, valid, dtype="bfloat16").model
    for name, quantizer in calibrated.inputs.items():
        assert again.inputs[name].step.scale.item() == pytest.approx(quantizer.step.scale.item(), rel=0.15)


def db(weight: Tensor, approximation: Tensor, x: Tensor) -> float:
    signal, noise = ((x.double() @ w.double().T).square().sum() for w in (weight, weight - approximation))
    return 10 * math.log10(signal / noise)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_errors_are_those_of_weight_and_output(tokens: Tensor, valid: Tensor, method: str):
    found = run(tokens, valid, method, Scheme(Weights(4, group=16)))
    assert list(found.errors.name) == [linear.name for linear in models.linears(tiny.llama())]
    inputs = {
        layer: inputs_of(with_layers_quantized(tiny.llama(), found.model, layer), tokens, valid) for layer in (0, 1)
    }
    for row in found.errors.itertuples():
        weight, x = tiny.llama().get_submodule(row.name).weight, inputs[row.layer][row.name]
        nearest, ours = rtn(weight, None, Weights(4, group=16)).weight, found.model.weight(row.name)
        whole = torch.eye(weight.shape[1])
        assert (row.bits, row.damping) == (4, 0.01 if method == "gptq" else 0)
        assert row.weight_sqnr == pytest.approx(db(weight, ours, whole), abs=2e-4)
        assert row.rtn_weight_sqnr == pytest.approx(db(weight, nearest, whole), abs=2e-4)
        assert row.output_sqnr == pytest.approx(db(weight, ours, x), abs=2e-3)
        assert row.rtn_output_sqnr == pytest.approx(db(weight, nearest, x), abs=2e-3)


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize(("method", "bits"), [("gptq", 3), ("gptq", 4), ("gptq", 8), ("smoothquant+gptq", 4)])
def test_gptq_has_less_output_error_than_rounding_to_nearest_in_every_linear(
    tokens: Tensor, valid: Tensor, method: str, bits: Any, group: int
):
    errors = run(tokens, valid, method, Scheme(Weights(bits, group=group))).errors
    assert (errors.output_sqnr >= errors.rtn_output_sqnr).all()
    assert errors.output_sqnr.mean() > errors.rtn_output_sqnr.mean() + 1


def test_clipping_for_the_weights_error_leaves_less_of_it_in_every_linear(tokens: Tensor, valid: Tensor):
    errors = run(tokens, valid, "mse", Scheme(Weights(3))).errors
    assert (errors.weight_sqnr >= errors.rtn_weight_sqnr).all()
    assert errors.weight_sqnr.mean() > errors.rtn_weight_sqnr.mean() + 0.5


def with_outliers() -> PreTrainedModel:
    """The tiny Llama with some channels of its norms thirty times as large as the others: what rescaling is for."""
    model = tiny.llama(tie=False)
    for name, parameter in model.named_parameters():
        if "layers" in name and "layernorm" in name:
            parameter[[3, 17]] *= 30
    return model


def logits_error(quantized: QuantizedModel, tokens: Tensor) -> float:
    model = with_outliers()
    expected = model(input_ids=tokens).logits
    quantized.put_into(model)
    return float((model(input_ids=tokens).logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", ["awq", "awq+gptq"])
def test_awq_protects_the_weights_that_large_activations_meet(tokens: Tensor, valid: Tensor, method: str):
    scheme = Scheme(Weights(3))
    ours, theirs = (run(tokens, valid, each, scheme, with_outliers()).model for each in (method, "rtn"))
    assert logits_error(ours, tokens) < 0.7 * logits_error(theirs, tokens)


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant+gptq"])
def test_smoothquant_makes_activations_with_outliers_fit_their_grid(tokens: Tensor, valid: Tensor, method: str):
    scheme = Scheme(Weights(8), Activations(8))
    ours, theirs = (run(tokens, valid, each, scheme, with_outliers()).model for each in (method, "rtn"))
    assert logits_error(ours, tokens) < 0.7 * logits_error(theirs, tokens)


def test_the_strength_of_smoothquants_migration_counts(tokens: Tensor, valid: Tensor):
    half, most = (run(tokens, valid, "smoothquant", migration=share).model for share in (0.5, 0.9))
    assert not torch.equal(half.codes[Q], most.codes[Q])


@pytest.mark.parametrize("method", PTQ_METHODS)
def test_every_method_gives_whole_codes_whose_latent_weights_round_to_them(tokens: Tensor, valid: Tensor, method: str):
    scheme = Scheme(Weights(3, symmetric=False, group=16), Activations(8, symmetric=False), KVCache(4, group=4))
    found = run(tokens, valid, method, scheme)
    names = {linear.name for linear in models.linears(tiny.llama())}
    model = found.model
    assert model.codes.keys() == model.steps.keys() == model.latent.keys() == model.schemes.keys() == names
    assert (model.kv_cache, set(model.schemes.values())) == (KVCache(4, group=4), {scheme.weights})
    grid = Grid(3, False)
    for name, codes in model.codes.items():
        assert codes.dtype == torch.uint8
        step = [part.repeat_interleave(16, dim=1) for part in model.steps[name]]
        ours = (model.latent[name] / step[0]).round() + step[1]
        assert torch.equal(ours.clamp(*grid.range), codes.float())
        assert all(part.shape == (len(codes), codes.shape[1] // 16) for part in model.steps[name])
    assert len(found.errors) == 14
    others = {name for name, _ in tiny.llama().named_parameters() if name.removesuffix(".weight") not in names}
    assert model.floats.keys() == others


def test_the_parts_of_every_method_exist():
    for method in PTQ_METHODS.values():
        assert method.rounding in ROUNDINGS
        assert method.rescaling is None or method.rescaling in RESCALINGS


def test_options_reach_gptq_and_no_other_rounding(tokens: Tensor, valid: Tensor):
    bare, ordered = (run(tokens, valid, "gptq", gptq={"act_order": order}).model for order in (True, False))
    assert not torch.equal(bare.codes[Q], ordered.codes[Q])
    assert (run(tokens, valid, "gptq", gptq={"damping": 0.5}).errors.damping == 0.5).all()
    run(tokens, valid, "rtn", gptq={"act_order": True})


@pytest.mark.parametrize("method", PTQ_METHODS)
def test_leaving_out_the_errors_changes_nothing_else(tokens: Tensor, valid: Tensor, method: str):
    found = run(tokens, valid, method, measure=False)
    assert found.errors.empty
    assert_same(found.model, run(tokens, valid, method).model)


def test_rounding_to_nearest_without_errors_never_gathers_inputs(
    tokens: Tensor, valid: Tensor, monkeypatch: pytest.MonkeyPatch
):
    expected = run(tokens, valid, "rtn").model
    monkeypatch.setattr(driver.Runner, "gather", None)
    found = run(tokens, valid, "rtn", measure=False)
    assert found.errors.empty
    assert_same(found.model, expected)


def test_the_model_is_left_with_the_quantized_numbers_and_no_hooks(tokens: Tensor, valid: Tensor):
    model, calls = tiny.llama(), []
    quantized = run(tokens, valid, "gptq", from_short("W4A16KV4"), model, advance=lambda: calls.append(None)).model
    assert len(calls) == 2
    assert all(torch.equal(model.get_submodule(n).weight, quantized.weight(n)) for n in quantized.codes)
    assert_bare(model)


def assert_bare(model: PreTrainedModel) -> None:
    """Nothing of the calibration is left on the model."""
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    assert "permafrost" not in model.config._attn_implementation


MIXED = Scheme(
    Weights(4),
    Activations(16),
    KVCache(4),
    (
        Override("model.layers.0.*", weights=Weights(8)),
        Override("down_proj", activations=Activations(8, dynamic=True)),
        Override("v", weights=Weights(0), activations=Activations(0)),
        Override("o", weights=Weights(2, symmetric=False, group=8)),
        Override("lm_head", weights=Weights(8)),
    ),
)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq+gptq"])
def test_overrides_reach_the_linears_that_they_name(tokens: Tensor, valid: Tensor, method: str):
    model = tiny.llama()
    found = run(tokens, valid, method, MIXED, model)
    quantized = found.model
    expected = {
        **{f"model.layers.0.self_attn.{part}_proj": Weights(8) for part in "qk"},
        **{f"model.layers.1.self_attn.{part}_proj": Weights(4) for part in "qk"},
        **{f"model.layers.{i}.self_attn.o_proj": Weights(2, symmetric=False, group=8) for i in (0, 1)},
        **{f"model.layers.0.mlp.{part}_proj": Weights(8) for part in ("gate", "up", "down")},
        **{f"model.layers.1.mlp.{part}_proj": Weights(4) for part in ("gate", "up", "down")},
        "lm_head": Weights(8),
    }
    assert quantized.schemes == expected
    assert quantized.codes.keys() == expected.keys()
    assert quantized.latent.keys() == expected.keys() - {"lm_head"}  # training leaves the head alone
    assert list(found.errors.name) == [linear.name for linear in models.linears(model) if linear.name in expected]
    assert dict(zip(found.errors.name, found.errors.bits, strict=True)) == {
        name: weights.bits for name, weights in expected.items() if name != "lm_head"
    }
    kinds = {linear: quantizer.scheme for linear, quantizer in quantized.inputs.items()}
    for linear in models.linears(model):
        dynamic = Activations(8, dynamic=True)
        wanted = {"down": dynamic, "v": None}.get(linear.role, Activations(16))
        assert kinds.get(linear.name) == wanted
    assert "lm_head" not in kinds
    for layer in (0, 1):
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        assert torch.equal(model.get_parameter(name), quantized.floats[name].float())


def test_a_quantized_head_has_a_weight_of_its_own_and_leaves_the_embeddings_alone(tokens: Tensor, valid: Tensor):
    model, teacher = tiny.llama(), tiny.llama()
    quantized = run(tokens, valid, "gptq", MIXED, model).model
    embedding = teacher.model.embed_tokens.weight.half()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    assert torch.equal(quantized.floats["model.embed_tokens.weight"], embedding)
    expected = rtn(teacher.model.embed_tokens.weight, None, Weights(8))
    assert torch.equal(quantized.codes["lm_head"], expected.codes)
    assert torch.equal(model.lm_head.weight, expected.weight)


def test_a_head_that_no_override_names_stays_tied(calibrated: QuantizedModel, tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    run(tokens, valid, "rtn", W4A16, model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any("lm_head" in name for name in (*calibrated.codes, *calibrated.floats))


def test_overrides_alone_may_quantize(tokens: Tensor, valid: Tensor):
    scheme = Scheme(Weights(0), overrides=(Override("down_proj", weights=Weights(4)),))
    quantized = run(tokens, valid, "gptq", scheme).model
    assert {name.rsplit(".", 1)[-1] for name in quantized.codes} == {"down_proj"}
    assert "model.layers.1.mlp.up_proj.weight" in quantized.floats


def test_inputs_of_a_linear_in_float_may_be_quantized(tokens: Tensor, valid: Tensor):
    scheme = Scheme(Weights(4), Activations(8), overrides=(Override("q", weights=Weights(0)),))
    quantized = run(tokens, valid, "rtn", scheme).model
    assert Q not in quantized.codes
    assert quantized.inputs[Q].step is not None


def test_the_head_is_planned_only_where_an_override_gives_it_bits():
    linears = models.linears(tiny.llama())
    assert plan(tiny.llama(), W4A16) == dict.fromkeys(linears, (W4A16.weights, W4A16.activations))
    planned = plan(tiny.llama(), Scheme(Weights(4), overrides=(Override("lm_head", Weights(8)),)))
    assert [linear.name for linear in planned] == [*(linear.name for linear in linears), "lm_head"]
    assert planned[models.head(tiny.llama())] == (Weights(8), Activations(0))


def problems(scheme: Scheme, model: PreTrainedModel) -> list[str]:
    with pytest.raises(ValueError, match="does not fit") as caught:
        plan(model, scheme)
    assert_bare(model)
    first, *rest = str(caught.value).splitlines()
    assert first == f"the scheme does not fit {type(model).__name__}:"
    return [line.strip() for line in rest]


def test_all_that_does_not_fit_is_named_at_once():
    scheme = Scheme(
        Weights(4, group=48),
        kv_cache=KVCache(4, group=5),
        overrides=(
            Override("query", weights=Weights(8)),
            Override("lm_head", weights=Weights(8), activations=Activations(8)),
            Override("model.layers.7.*", weights=Weights(8)),
        ),
    )
    found = problems(scheme, tiny.llama())
    names = "model has model.layers.*.self_attn.q_proj (q), "
    assert found[0].startswith("scheme.overrides: nothing is called 'query'; the " + names)
    assert found[1].startswith("scheme.overrides: nothing is called 'model.layers.7.*'; the " + names)
    shapes = [("self_attn", x) for x in "qkvo"] + [("mlp", x) for x in ("gate", "up")]
    widths = [f"the 32 inputs of model.layers.*.{part}.{x}_proj ({x})" for part, x in shapes]
    widths.append("the 64 inputs of model.layers.*.mlp.down_proj (down)")
    assert found[2:9] == [f"scheme: a group of 48 does not divide {width}" for width in widths]
    head = "scheme.overrides: the input of lm_head (lm_head) stays in float; leave out its activations"
    assert found[9] == head
    assert found[10] == "scheme: kv_cache.group 5 does not divide the 16 key values of a token"
    assert len(found) == 11


@pytest.mark.parametrize("role", ["q", "k", "v", "gate", "up"])
def test_a_role_that_is_part_of_a_fused_projection_is_refused(role: str):
    (found,) = problems(Scheme(Weights(4), overrides=(Override(role, weights=Weights(8)),)), family("phi3"))
    fused = "mlp.gate_up_proj (gateup)" if role in ("gate", "up") else "self_attn.qkv_proj (qkv)"
    assert found == (
        f"scheme.overrides: {role!r} is only part of model.layers.*.{fused}; name the module, whose parts share a grid"
    )


def test_a_fused_projection_is_named_by_its_module_or_its_own_role():
    for match in ("qkv_proj", "qkv"):
        planned = plan(family("phi3"), Scheme(Weights(4), overrides=(Override(match, weights=Weights(8)),)))
        eight = [linear.name for linear, (weights, _) in planned.items() if weights.bits == 8]
        assert eight == [f"model.layers.{i}.self_attn.qkv_proj" for i in (0, 1)]


def test_a_cache_that_the_model_does_not_have_is_refused():
    (found,) = problems(Scheme(Weights(4), kv_cache=KVCache(4)), family("mamba"))
    assert "MambaForCausalLM has no attention whose keys and values can be quantized; set kv_cache.bits to 0" in found


@pytest.mark.parametrize("activations", [Activations(0), Activations(8)])
def test_a_scheme_that_quantizes_no_weight_is_refused(activations: Activations):
    for overrides in ((), (Override("q", activations=Activations(8)),), (Override("*", weights=Weights(0)),)):
        found = problems(Scheme(Weights(0), activations, overrides=overrides), tiny.llama())
        assert found == ["scheme: no weight is quantized; give scheme.weights.bits, or an override"]


def test_calibration_refuses_what_does_not_fit_before_it_changes_anything(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    with pytest.raises(ValueError, match="a group of 48 does not divide"):
        run(tokens, valid, "rtn", Scheme(Weights(4, group=48), overrides=(Override("lm_head", Weights(8)),)), model)
    assert all(torch.equal(p, other) for p, other in zip(model.parameters(), tiny.llama().parameters(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("method", "measure"), [("gptq", True), ("awq", True), ("rtn", True), ("rtn", False)])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_input_that_is_not_finite_is_named(
    tokens: Tensor, valid: Tensor, layer: int, method: str, measure: bool, value: float
):
    """What overflows is an activation function's output; the weights are sound."""
    model = tiny.llama()

    def overflow(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[0, 1, 5] = value
        return output

    model.model.layers[layer].mlp.act_fn.register_forward_hook(overflow)
    with pytest.raises(ValueError, match=rf"the input of model\.layers\.{layer}\.mlp\.down_proj is not finite"):
        run(tokens, valid, method, from_short("W4A16KV4"), model, measure=measure)
    assert "permafrost" not in model.config._attn_implementation


def test_a_position_without_text_may_hold_anything(tokens: Tensor, valid: Tensor):
    model = tiny.llama()

    def spoil(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_fill(~valid[:1, : output.shape[1], None].expand_as(output), math.nan)

    assert bool(valid[0].all())
    model.model.layers[0].mlp.act_fn.register_forward_hook(spoil)
    run(tokens, valid, "gptq", W4A16, model)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("measure", [True, False])
def test_weights_that_are_not_finite_are_all_named(tokens: Tensor, valid: Tensor, measure: bool, value: float):
    model = tiny.llama()
    names = [Q, "model.layers.1.mlp.up_proj"]
    for name in names:
        model.get_submodule(name).weight[3, 4] = value
    with pytest.raises(ValueError, match="these weights are not finite") as caught:
        run(tokens, valid, "rtn", W4A16, model, measure=measure)
    assert str(names) in str(caught.value)


def test_a_weight_whose_scale_leaves_float16_is_named(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    model.get_submodule(Q).weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=rf"{Q}: values up to 1e\+06 need a scale beyond the range"):
        run(tokens, valid, "rtn", W4A16, model, measure=False)


def test_a_linear_that_the_forward_never_calls_is_named(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    model.model.layers[1].mlp.spare = nn.Linear(32, 32).requires_grad_(False)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.spare is not called on the calibration tokens"):
        run(tokens, valid, "gptq", W4A16, model)
    spared = Scheme(Weights(4), Activations(16), overrides=(Override("spare", Weights(0), Activations(0)),))
    assert "model.layers.1.mlp.spare" not in run(tokens, valid, "gptq", spared, model).model.codes


def assert_same(found: QuantizedModel, expected: QuantizedModel) -> None:
    """Every tensor, bit for bit."""
    for part in ("codes", "latent", "floats"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert ours.keys() == theirs.keys()
        assert all(
            torch.equal(ours[name], values) and ours[name].dtype == values.dtype for name, values in theirs.items()
        )
    assert found.steps.keys() == expected.steps.keys()
    for name, step in expected.steps.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.steps[name], step, strict=True))
    assert (found.inputs, found.kv_cache, found.schemes) == (expected.inputs, expected.kv_cache, expected.schemes)


OBSERVED = [Activations(16), *(Activations(8, False, observer=kind) for kind in ("percentile", "mse"))]
KILLED = [("rtn", OBSERVED[1]), ("gptq", OBSERVED[0]), ("awq+gptq", OBSERVED[1]), ("smoothquant", OBSERVED[2])]


class Killed(Exception):
    """Stands for the signal."""


def killed_after(layers: int) -> Callable[[], None]:
    """An `advance` that ends the run once so many layers are done."""
    left = iter(range(layers - 1))

    def advance() -> None:
        if next(left, None) is None:
            raise Killed

    return advance


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were quantized, and not taken from the scratch folder."""
    seen: list[int] = []
    sound = driver._quantize_layer

    def spy(runner: Any, layer: nn.Module, group: list[models.Linear], *rest: Any) -> Any:
        seen.append(group[0].layer)
        return sound(runner, layer, group, *rest)

    monkeypatch.setattr(driver, "_quantize_layer", spy)
    return seen


def killable(activations: Activations) -> Scheme:
    return Scheme(
        Weights(4, group=8), activations, KVCache(4), (Override("lm_head", Weights(8)), Override("v", Weights(0)))
    )


@pytest.mark.parametrize(("method", "activations"), KILLED)
def test_a_killed_calibration_goes_on_after_its_last_whole_layer_and_ends_in_the_same_bits(
    tokens: Tensor, valid: Tensor, tmp_path: Path, computed: list[int], method: str, activations: Activations
):
    scheme = killable(activations)
    expected = run(tokens, valid, method, scheme, tiny.llama(layers=3))
    computed.clear()
    with pytest.raises(Killed):
        run(tokens, valid, method, scheme, tiny.llama(layers=3), tmp_path, killed_after(2))
    assert computed == [0, 1]
    again = run(tokens, valid, method, scheme, tiny.llama(layers=3), tmp_path)
    assert computed == [0, 1, 2]
    assert_same(again.model, expected.model)
    assert again.errors.equals(expected.errors)
    assert again.skipped == expected.skipped
    assert len(again.skipped) == (3 if PTQ_METHODS[method].rescaling else 0)
    if PTQ_METHODS[method].rescaling:
        floats = {key for key in load_file(tmp_path / "layer-1.safetensors") if key.startswith("float/")}
        names = ("input_layernorm", "post_attention_layernorm", "self_attn.v_proj")
        assert floats == {f"float/model.layers.1.{name}.weight" for name in names}
    third = run(tokens, valid, method, scheme, tiny.llama(layers=3), tmp_path)
    assert computed == [0, 1, 2]
    assert_same(third.model, expected.model)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_layers_file_that_is_not_whole_is_made_anew(
    calibrated: QuantizedModel, tokens: Tensor, valid: Tensor, tmp_path: Path, computed: list[int], keep: int
):
    run(tokens, valid, scratch=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["layer-0.safetensors", "layer-1.safetensors"]
    assert not any(key.startswith("float/") for key in load_file(files[0]))  # no rescaling has changed them
    files[0].write_bytes(files[0].read_bytes()[:keep])
    computed.clear()
    assert_same(run(tokens, valid, scratch=tmp_path).model, calibrated)
    assert computed == [0]
    assert sorted(tmp_path.iterdir()) == files


def test_a_kill_while_a_layer_is_written_leaves_nothing_that_is_taken_for_whole(
    calibrated: QuantizedModel, tokens: Tensor, valid: Tensor, tmp_path: Path, computed: list[int], monkeypatch
):
    def half(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(driver, "save_file", half)
        with pytest.raises(Killed):
            run(tokens, valid, scratch=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    computed.clear()
    assert_same(run(tokens, valid, scratch=tmp_path).model, calibrated)
    assert computed == [0, 1]


@pytest.mark.parametrize("method", ["gptq", "awq+gptq"])
def test_the_same_calibration_gives_the_same_bytes(tokens: Tensor, valid: Tensor, tmp_path: Path, method: str):
    for name in ("a", "b"):
        found = run(tokens, valid, method, killable(Activations(8, False, observer="mse")))
        found.model.save(tmp_path / name, {"method": method}, {"errors": found.errors})
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert {"codes.safetensors", "latent.safetensors", "errors.csv", artifacts.MANIFEST} <= set(files)
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
