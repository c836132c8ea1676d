"""What each method makes of the weights, and the errors that are reported of it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration import driver
from pipeline.calibration.methods import PTQ_METHODS
from pipeline.calibration.rescale import RESCALINGS
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights, from_short
from pipeline.models import layout
from pipeline.quant.grid import Grid
from pipeline.quant.model import QuantizedModel
from pipeline.rounding.methods import ROUNDINGS, rtn
from tests import tiny
from tests.unit.calibration.runs import Q, differing, inputs_of, is_bare, run, with_layers_quantized


def db(weight: Tensor, approximation: Tensor, x: Tensor) -> float:
    signal, noise = ((x.double() @ w.double().T).square().sum() for w in (weight, weight - approximation))
    return 10 * math.log10(signal / noise)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_errors_are_those_of_weight_and_output(tokens: Tensor, valid: Tensor, method: str):
    calibrated = run(tokens, valid, method, Scheme(Weights(4, group=16)))
    assert list(calibrated.errors.name) == [linear.name for linear in layout.linears(tiny.llama())]
    inputs = {
        layer: inputs_of(with_layers_quantized(tiny.llama(), calibrated.model, layer), tokens, valid)
        for layer in (0, 1)
    }
    for row in calibrated.errors.itertuples():
        weight, x = tiny.llama().get_submodule(row.name).weight, inputs[row.layer][row.name]
        nearest, ours = rtn(weight, None, Weights(4, group=16)).weight, calibrated.model.weight(row.name)
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
    ours, theirs = (run(tokens, valid, name, scheme, with_outliers()).model for name in (method, "rtn"))
    assert logits_error(ours, tokens) < 0.7 * logits_error(theirs, tokens)


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant+gptq"])
def test_smoothquant_makes_activations_with_outliers_fit_their_grid(tokens: Tensor, valid: Tensor, method: str):
    scheme = Scheme(Weights(8), Activations(8))
    ours, theirs = (run(tokens, valid, name, scheme, with_outliers()).model for name in (method, "rtn"))
    assert logits_error(ours, tokens) < 0.7 * logits_error(theirs, tokens)


def test_the_strength_of_smoothquants_migration_counts(tokens: Tensor, valid: Tensor):
    half, most = (run(tokens, valid, "smoothquant", migration=share).model for share in (0.5, 0.9))
    assert not torch.equal(half.codes[Q], most.codes[Q])


@pytest.mark.parametrize("method", PTQ_METHODS)
def test_every_method_gives_whole_codes_whose_latent_weights_round_to_them(tokens: Tensor, valid: Tensor, method: str):
    scheme = Scheme(Weights(3, symmetric=False, group=16), Activations(8, symmetric=False), KVCache(4, group=4))
    calibrated = run(tokens, valid, method, scheme)
    names = {linear.name for linear in layout.linears(tiny.llama())}
    model = calibrated.model
    assert model.codes.keys() == model.steps.keys() == model.latent.keys() == model.schemes.keys() == names
    assert (model.kv_cache, set(model.schemes.values())) == (KVCache(4, group=4), {scheme.weights})
    grid = Grid(3, False)
    for name, codes in model.codes.items():
        assert codes.dtype == torch.uint8
        step = [part.repeat_interleave(16, dim=1) for part in model.steps[name]]
        ours = (model.latent[name] / step[0]).round() + step[1]
        assert torch.equal(ours.clamp(*grid.range), codes.float())
        assert all(part.shape == (len(codes), codes.shape[1] // 16) for part in model.steps[name])
    assert len(calibrated.errors) == 14
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
    calibrated = run(tokens, valid, method, measure=False)
    assert calibrated.errors.empty
    assert differing(calibrated.model, run(tokens, valid, method).model) == []


def test_rounding_to_nearest_without_errors_never_gathers_inputs(
    tokens: Tensor, valid: Tensor, monkeypatch: pytest.MonkeyPatch
):
    expected = run(tokens, valid, "rtn").model
    monkeypatch.setattr(driver.Runner, "gather", None)
    calibrated = run(tokens, valid, "rtn", measure=False)
    assert calibrated.errors.empty
    assert differing(calibrated.model, expected) == []


def test_the_model_is_left_with_the_quantized_numbers_and_no_hooks(tokens: Tensor, valid: Tensor):
    model, calls = tiny.llama(), []
    quantized = run(tokens, valid, "gptq", from_short("W4A16KV4"), model, advance=lambda: calls.append(None)).model
    assert len(calls) == 2
    assert all(torch.equal(model.get_submodule(n).weight, quantized.weight(n)) for n in quantized.codes)
    assert is_bare(model)
