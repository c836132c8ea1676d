"""Calibration layer by layer against whole forwards of the same model, in every layout that a family has."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.calibration.methods import PTQ_METHODS
from pipeline.calibration.observers import Observed, static_quantizer
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights, from_short
from pipeline.models import layout
from pipeline.quant.activations import STEP_DTYPE
from pipeline.quant.grid import Grid
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.model import QuantizedModel, quantize_signals
from pipeline.rounding.methods import ROUNDINGS, Rounded
from tests import tiny
from tests.families import family
from tests.unit.calibration.runs import differing, inputs_of, run, with_layers_quantized

LAYOUTS = ["llama", "mistral", "qwen2-window", "phi3", "gpt-neox", "stablelm-2", "opt", "falcon-7b", "bloom", "mamba"]
WITH_CACHE = LAYOUTS[:7]  # the others compute their attention themselves


@pytest.fixture
def hessians(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The weights that GPTQ is given, and the Hessians, in the order of the linears."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def spy(weight: Tensor, hessian: Tensor, scheme: Weights, **options: Any) -> Rounded:
        pairs.append((weight.clone(), hessian.clone()))
        return sound(weight, hessian, scheme, **options)

    sound = ROUNDINGS["gptq"]
    monkeypatch.setitem(ROUNDINGS, "gptq", spy)
    return pairs


@pytest.mark.parametrize(("name", "kv"), [*((name, 0) for name in LAYOUTS), *((name, 4) for name in WITH_CACHE)])
def test_each_weight_is_rounded_on_the_inputs_from_the_quantized_layers_before(
    hessians: list[tuple[Tensor, Tensor]], tokens: Tensor, valid: Tensor, name: str, kv: Any
):
    """Those of the layer's own linears come from its float weights."""
    scheme = Scheme(Weights(4), Activations(16), KVCache(kv))
    quantized = run(tokens, valid, "gptq", scheme, family(name)).model
    linears = layout.linears(family(name))
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
        step = quantized.inputs[linear].step
        assert step.scale.item() == pytest.approx(expected.scale.item(), rel=1e-4)
        assert abs(step.zero - expected.zero) <= 1  # of 255: a range's float32 noise may move it by one
        assert step.scale.shape == step.zero.shape == ()


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
        observed = Observed()
        observed.see_range(x)
        observed.see_values(x)
        expected = static_quantizer(observed, activations).step.scale.item()
        assert quantized.inputs[linear].step.scale.item() == pytest.approx(expected, rel=0.01)
        assert expected < 0.8 * x.abs().max() / 127 or observer == "mse"


def test_dynamic_inputs_have_no_range(tokens: Tensor, valid: Tensor):
    quantizers = run(tokens, valid, "rtn", from_short("W4A8")).model.inputs
    assert len(quantizers) == 14
    assert all(
        quantizer.step is None and quantizer.scheme == Activations(8, dynamic=True) for quantizer in quantizers.values()
    )


def test_inputs_may_stay_in_float(tokens: Tensor, valid: Tensor):
    assert run(tokens, valid, scheme=from_short("W8")).model.inputs == {}


def test_positions_that_hold_no_text_are_not_looked_at(calibrated: QuantizedModel, tokens: Tensor, valid: Tensor):
    again = run(tokens.where(valid, (tokens + 1) % 259), valid).model
    assert differing(again, calibrated) == []
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
