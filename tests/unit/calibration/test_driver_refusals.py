"""Schemes that do not fit the model, and numbers that no grid holds: refused, and named."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration.plan import plan
from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights, from_short
from pipeline.quant.grid import stored_dtype
from tests import tiny
from tests.families import family
from tests.unit.calibration.runs import W4A16, Q, is_bare, run


def problems(scheme: Scheme, model: PreTrainedModel) -> list[str]:
    with pytest.raises(ValueError, match="does not fit") as caught:
        plan(model, scheme)
    assert is_bare(model)
    first, *rest = str(caught.value).splitlines()
    assert first == f"the scheme does not fit {type(model).__name__}:"
    return [line.strip() for line in rest]


def test_all_that_does_not_fit_is_named_at_once():
    scheme = Scheme(
        Weights(4, group=48),
        kv_cache=KVCache(4, group=5),
        overrides=(
            Override("query", weights=Weights(8)),
            Override("lm_head", weights=Weights(8)),
            Override("model.layers.7.*", weights=Weights(8)),
        ),
    )
    messages = problems(scheme, tiny.llama())
    assert messages.pop(1) == "scheme.overrides: 'lm_head' is no linear of the decoder; scheme.head says what it gets"
    names = "model has model.layers.*.self_attn.q_proj (q), "
    assert messages[0].startswith("scheme.overrides: nothing is called 'query'; the " + names)
    assert messages[1].startswith("scheme.overrides: nothing is called 'model.layers.7.*'; the " + names)
    shapes = [("self_attn", x) for x in "qkvo"] + [("mlp", x) for x in ("gate", "up")]
    widths = [f"the 32 inputs of model.layers.*.{part}.{x}_proj ({x})" for part, x in shapes]
    widths.append("the 64 inputs of model.layers.*.mlp.down_proj (down)")
    assert messages[2:9] == [f"scheme: a group of 48 does not divide {width}" for width in widths]
    assert messages[9] == "scheme: kv_cache.group 5 does not divide the 16 key values of a token"
    assert len(messages) == 10


@pytest.mark.parametrize("role", ["q", "k", "v", "gate", "up"])
def test_a_role_that_is_part_of_a_fused_projection_is_refused(role: str):
    (message,) = problems(Scheme(Weights(4), overrides=(Override(role, weights=Weights(8)),)), family("phi3"))
    fused = "mlp.gate_up_proj (gateup)" if role in ("gate", "up") else "self_attn.qkv_proj (qkv)"
    assert message == (
        f"scheme.overrides: {role!r} is only part of model.layers.*.{fused}; name the module, whose parts share a grid"
    )


def test_a_cache_that_the_model_does_not_have_is_refused():
    (message,) = problems(Scheme(Weights(4), kv_cache=KVCache(4)), family("mamba"))
    assert "MambaForCausalLM has no attention whose keys and values can be quantized; set kv_cache.bits to 0" in message


@pytest.mark.parametrize("activations", [Activations(0), Activations(8)])
def test_a_scheme_that_quantizes_no_weight_is_refused(activations: Activations):
    for overrides in ((), (Override("q", activations=Activations(8)),), (Override("*", weights=Weights(0)),)):
        messages = problems(Scheme(Weights(0), activations, overrides=overrides), tiny.llama())
        assert messages == ["scheme: no weight is quantized; give scheme.weights.bits, or an override"]


def test_calibration_refuses_what_does_not_fit_before_it_changes_anything(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    with pytest.raises(ValueError, match="a group of 48 does not divide"):
        run(tokens, valid, "rtn", Scheme(Weights(4, group=48), head=Weights(8)), model)
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


def test_a_weight_whose_scale_leaves_float16_has_scales_of_float32(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    model.get_submodule(Q).weight[0, 0] = 1e6
    quantized = run(tokens, valid, "rtn", W4A16, model, measure=False).model
    assert quantized.steps[Q].scale[0, 0] == torch.tensor(1e6) / 7
    assert {name for name, step in quantized.steps.items() if stored_dtype(step.scale) == torch.float32} == {Q}


def test_a_linear_that_the_forward_never_calls_is_named(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    model.model.layers[1].mlp.spare = nn.Linear(32, 32).requires_grad_(False)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.spare is not called on the calibration tokens"):
        run(tokens, valid, "gptq", W4A16, model)
    spared = Scheme(Weights(4), Activations(16), overrides=(Override("spare", Weights(0), Activations(0)),))
    assert "model.layers.1.mlp.spare" not in run(tokens, valid, "gptq", spared, model).model.codes
