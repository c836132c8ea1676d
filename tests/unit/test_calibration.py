"""Calibration layer by layer against whole forwards of the same model."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import models
from pipeline.calibration import calibrate
from pipeline.quant.methods import gptq, rtn
from pipeline.quant.model import QuantizedModel
from tests import tiny

Result = tuple[QuantizedModel, pd.DataFrame]


def run(
    tokens: Tensor, valid: Tensor, method: str = "gptq", bits: tuple[int, int] = (4, 16), **options: object
) -> Result:
    settings = {"batch": 4, "dtype": "float32", "advance": lambda: None} | options
    return calibrate(tiny.llama(), tokens, valid, method, bits, {}, **settings)


@pytest.fixture(scope="module", params=["gptq", "rtn"])
def result(request: pytest.FixtureRequest, tokens: Tensor, valid: Tensor) -> Result:
    return run(tokens, valid, request.param)


def with_layers_quantized(quantized: QuantizedModel, below: int) -> PreTrainedModel:
    """The float model with float16 embeddings and norms, and quantized weights in the layers before `below`."""
    model = tiny.llama()
    for name, values in quantized.floats.items():
        model.get_parameter(name).copy_(values)
    for linear in models.linears(model):
        if linear.layer < below:
            model.get_submodule(linear.name).weight.copy_(quantized.weight(linear.name))
    return model


def inputs_of(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What each linear reads at valid positions in a forward of all sequences: [tokens, in]."""
    seen: dict[str, Tensor] = {}
    models.on_layer_inputs(model, models.linears(model), lambda linear, x: seen.update({linear.name: x[valid]}))
    model(input_ids=tokens)
    return seen


def test_activation_scales_come_from_the_greatest_magnitude_in_the_quantized_model(result, tokens, valid):
    quantized, _ = result
    inputs = inputs_of(with_layers_quantized(quantized, below=2), tokens, valid)
    assert quantized.activation_scales.keys() == inputs.keys()
    for name, x in inputs.items():
        assert quantized.activation_scales[name].item() == pytest.approx(x.abs().max().item() / 32767, rel=1e-5)


def test_each_weight_is_rounded_on_the_inputs_from_the_quantized_layers_before(result, tokens, valid):
    """Those of the layer's own linears come from its float weights."""
    quantized, errors = result
    method = gptq if (errors.damping > 0).all() else rtn
    for layer in (0, 1):
        model = with_layers_quantized(quantized, below=layer)
        inputs = inputs_of(model, tokens, valid)
        for linear in models.linears(model):
            if linear.layer == layer:
                x = inputs[linear.name]
                expected = method(tiny.llama().get_submodule(linear.name).weight, x.T @ x, 4)
                agree = (quantized.codes[linear.name] == expected.codes).float().mean()
                assert agree > 0.99  # another order of float32 sums may move a code across a tie
                assert torch.equal(quantized.scales[linear.name], expected.scale)


def test_the_errors_are_those_of_weight_and_output(result, tokens, valid):
    quantized, errors = result
    assert list(errors.name) == [x.name for x in models.linears(tiny.llama())]
    inputs = {layer: inputs_of(with_layers_quantized(quantized, below=layer), tokens, valid) for layer in (0, 1)}

    def db(weight: Tensor, approximation: Tensor, x: Tensor) -> float:
        signal, noise = ((x.double() @ w.double().T).square().sum() for w in (weight, weight - approximation))
        return 10 * math.log10(signal / noise)

    for row in errors.itertuples():
        weight = tiny.llama().get_submodule(row.name).weight
        nearest, ours, x = rtn(weight, None, 4).weight, quantized.weight(row.name), inputs[row.layer][row.name]
        whole = torch.eye(weight.shape[1])
        assert row.weight_sqnr == pytest.approx(db(weight, ours, whole), abs=2e-4)
        assert row.rtn_weight_sqnr == pytest.approx(db(weight, nearest, whole), abs=2e-4)
        assert row.output_sqnr == pytest.approx(db(weight, ours, x), abs=2e-3)
        assert row.rtn_output_sqnr == pytest.approx(db(weight, nearest, x), abs=2e-3)


def test_gptq_has_less_output_error_than_rounding_to_nearest(tokens, valid):
    _, errors = run(tokens, valid, "gptq")
    assert (errors.output_sqnr >= errors.rtn_output_sqnr).mean() > 0.9
    assert errors.output_sqnr.mean() > errors.rtn_output_sqnr.mean() + 1


def test_rounding_to_nearest_needs_no_hessians(result, tokens, valid):
    quantized, errors = run(tokens, valid, "rtn", measure=False)
    assert errors.empty
    for linear in models.linears(tiny.llama()):
        weight = tiny.llama().get_submodule(linear.name).weight
        assert torch.equal(quantized.codes[linear.name], rtn(weight, None, 4).codes)


def test_positions_that_hold_no_text_are_not_looked_at(calibrated: QuantizedModel, tokens, valid):
    again, _ = run(tokens.where(valid, (tokens + 1) % 259), valid)
    assert all(torch.equal(again.codes[name], codes) for name, codes in calibrated.codes.items())
    assert again.activation_scales == calibrated.activation_scales
    everything, _ = run(tokens, torch.ones_like(valid))
    assert everything.activation_scales != calibrated.activation_scales


@pytest.mark.parametrize("batch", [1, 6])
def test_the_batch_changes_only_the_order_of_sums(calibrated: QuantizedModel, tokens, valid, batch: int):
    again, _ = run(tokens, valid, batch=batch)
    same = [(again.codes[name] == codes).float().mean().item() for name, codes in calibrated.codes.items()]
    assert min(same) > 0.98
    for name, scale in calibrated.activation_scales.items():
        assert again.activation_scales[name].item() == pytest.approx(scale.item(), rel=0.02)


def test_the_model_is_left_with_the_quantized_numbers_and_no_hooks(tokens, valid):
    model, calls = tiny.llama(), []
    quantized, _ = calibrate(model, tokens, valid, "gptq", (4, 16), {}, 4, "float32", lambda: calls.append(None))
    assert len(calls) == 2
    assert all(torch.equal(model.get_submodule(n).weight, quantized.weight(n)) for n in quantized.codes)
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())


def test_activations_may_stay_in_float(tokens, valid):
    quantized, _ = run(tokens, valid, bits=(8, 0))
    assert quantized.activation_scales == {}
    assert max(codes.abs().max() for codes in quantized.codes.values()) == 127
    assert (quantized.weight_bits, quantized.activation_bits) == (8, 0)


def test_the_same_calibration_gives_the_same_bits(calibrated: QuantizedModel, tokens, valid):
    again, _ = run(tokens, valid)
    assert all(torch.equal(again.latent[name], latent) for name, latent in calibrated.latent.items())


def test_a_forward_in_bfloat16_sees_nearly_the_same_ranges(calibrated: QuantizedModel, tokens, valid):
    again, _ = run(tokens, valid, dtype="bfloat16")
    for name, scale in calibrated.activation_scales.items():
        assert again.activation_scales[name].item() == pytest.approx(scale.item(), rel=0.15)


@pytest.mark.parametrize(("method", "measure"), [("gptq", True), ("rtn", True), ("rtn", False)])
def test_an_input_that_is_not_finite_is_named(tokens, valid, method: str, measure: bool):
    model = tiny.llama()
    model.model.layers[0].mlp.down_proj.weight.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"model\.layers\.\d\.\w+\.\w+_proj is not finite"):
        calibrate(model, tokens, valid, method, (4, 16), {}, 4, "float32", lambda: None, measure)
