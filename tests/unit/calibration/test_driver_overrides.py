"""What overrides give to the linears that they name."""

import pytest
import torch
from torch import Tensor

from pipeline.calibration.plan import plan
from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights
from pipeline.models import layout
from tests import tiny
from tests.families import family
from tests.unit.calibration.runs import Q, run

MIXED = Scheme(
    Weights(4),
    Activations(16),
    KVCache(4),
    (
        Override("model.layers.0.*", weights=Weights(8)),
        Override("down_proj", activations=Activations(8, dynamic=True)),
        Override("v", weights=Weights(0), activations=Activations(0)),
        Override("o", weights=Weights(2, symmetric=False, group=8)),
    ),
)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq+gptq"])
def test_overrides_reach_the_linears_that_they_name(tokens: Tensor, valid: Tensor, method: str):
    model = tiny.llama()
    calibrated = run(tokens, valid, method, MIXED, model)
    quantized = calibrated.model
    expected = {
        **{f"model.layers.0.self_attn.{part}_proj": Weights(8) for part in "qk"},
        **{f"model.layers.1.self_attn.{part}_proj": Weights(4) for part in "qk"},
        **{f"model.layers.{i}.self_attn.o_proj": Weights(2, symmetric=False, group=8) for i in (0, 1)},
        **{f"model.layers.0.mlp.{part}_proj": Weights(8) for part in ("gate", "up", "down")},
        **{f"model.layers.1.mlp.{part}_proj": Weights(4) for part in ("gate", "up", "down")},
    }
    assert quantized.schemes == expected
    assert quantized.codes.keys() == expected.keys()
    assert quantized.latent.keys() == expected.keys()
    assert list(calibrated.errors.name) == [linear.name for linear in layout.linears(model) if linear.name in expected]
    assert dict(zip(calibrated.errors.name, calibrated.errors.bits, strict=True)) == {
        name: weights.bits for name, weights in expected.items()
    }
    kinds = {linear: quantizer.scheme for linear, quantizer in quantized.inputs.items()}
    for linear in layout.linears(model):
        dynamic = Activations(8, dynamic=True)
        wanted = {"down": dynamic, "v": None}.get(linear.role, Activations(16))
        assert kinds.get(linear.name) == wanted
    for layer in (0, 1):
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        assert torch.equal(model.get_parameter(name), quantized.floats[name].float())


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


def test_a_fused_projection_is_named_by_its_module_or_its_own_role():
    for match in ("qkv_proj", "qkv"):
        planned = plan(family("phi3"), Scheme(Weights(4), overrides=(Override(match, weights=Weights(8)),)))
        eight = [linear.name for linear, (weights, _) in planned.items() if weights.bits == 8]
        assert eight == [f"model.layers.{i}.self_attn.qkv_proj" for i in (0, 1)]
