"""Rescaling: the float model stays the same function, and the scales are the papers', in float64 and by brute force."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.layers import Inputs, Runner
from pipeline.calibration.rescale import RESCALINGS, fold, pairs, rescale
from pipeline.knobs.scheme import Weights
from pipeline.models import layout
from pipeline.quant.model import float_tensors
from tests.families import family

V_O, UP_DOWN = "v_proj -> o_proj", "up_proj -> down_proj"
GELU = "mlp.dense_h_to_4h -> dense_4h_to_h"  # a nonlinearity stands between
SKIPPED = {  # what does not fold, in each layer
    "llama": [f"self_attn.{V_O}"],  # two query heads share a value head
    "longchat": [],
    "gemma": [f"self_attn.{V_O}"],
    "opt": [],  # a ReLU lets a factor through
    "falcon-7b": ["self_attention.query_key_value -> dense", GELU],
    "gpt-neox": [GELU],
    "phi3": ["self_attn.qkv_proj -> o_proj"],
}


def rounded(name: str) -> PreTrainedModel:
    """A family's model as calibration takes it: what is not quantized is representable in float16."""
    model = family(name)
    quantized = {linear.name for linear in layout.linears(model)}
    for key, values in float_tensors(model, quantized).items():
        model.get_parameter(key).copy_(values)
    return model


def rescaled(
    model: PreTrainedModel, tokens: Tensor, valid: Tensor, method: str, see: Callable[..., None] = lambda *_: None
) -> list[str]:
    """Rescale every layer of a float model; returns the pairs that were skipped."""
    runner = Runner.start(model, tokens, valid, 4, "float32")
    skipped = []
    for index, layer in enumerate(layout.decoder_layers(model)[1]):
        group = [linear for linear in layout.linears(model) if linear.layer == index]
        inputs = runner.gather(layer, group)
        skipped += rescale(runner, layer, group, inputs, {x.name: Weights(4) for x in group}, method, 0.5)
        see(runner, layer, group, inputs)
        runner.advance(layer, group, set())
    return skipped


@pytest.mark.parametrize("method", RESCALINGS)
@pytest.mark.parametrize("name", SKIPPED)
def test_without_rounding_the_model_says_what_it_said(tokens: Tensor, valid: Tensor, name: str, method: str):
    model = rounded(name)
    expected = model(input_ids=tokens, use_cache=False).logits
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    skipped = rescaled(model, tokens, valid, method)
    prefix = layout.decoder_layers(model)[0]
    assert skipped == [f"{prefix}.{i}.{pair}" for i in (0, 1) for pair in SKIPPED[name]]
    logits = model(input_ids=tokens, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    changed = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    readers = {f"{linear.name}.weight" for linear in layout.linears(model)}
    unmoved = {f"{prefix}.{i}.{pair}" for i in (0, 1) for pair in SKIPPED[name]}
    unmoved = {re.sub(r"[^.]+ -> (.*)", r"\1", pair) + ".weight" for pair in unmoved}
    assert unmoved <= readers - changed
    assert readers - changed == unmoved or method == "awq"  # to which a scale of ones may seem best
    for key, parameter in model.named_parameters():
        assert key in readers or torch.equal(parameter, parameter.half().float()), key


@pytest.mark.parametrize("name", ["llama", "stablelm", "stablelm-2", "gpt-neox", "phi3", "gemma", "opt"])
@pytest.mark.parametrize("method", RESCALINGS)
def test_inputs_become_those_of_the_rescaled_layer(tokens: Tensor, valid: Tensor, name: str, method: str):
    """Those of linears that read one tensor after another included, as under a parallel residual."""

    def see(runner: Runner, layer: torch.nn.Module, group: list[layout.Linear], inputs: dict[str, Inputs]) -> None:
        for linear, expected in runner.gather(layer, group).items():
            for part in ("hessian", "absmax", "mean_abs"):
                ours, theirs = (getattr(sums, part) for sums in (inputs[linear], expected))
                torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4 * float(theirs.abs().max()))

    rescaled(rounded(name), tokens, valid, method, see)


def first_layer(name: str, tokens: Tensor, valid: Tensor) -> tuple[Runner, torch.nn.Module, list[layout.Linear]]:
    model = rounded(name)
    group = [linear for linear in layout.linears(model) if linear.layer == 0]
    return Runner.start(model, tokens, valid, 4, "float32"), layout.decoder_layers(model)[1][0], group


def test_pairs_are_each_norm_with_its_readers_then_v_with_o_and_up_with_down(tokens: Tensor, valid: Tensor):
    foldable = pairs(*first_layer("llama", tokens, valid))
    assert [str(pair) for pair in foldable] == [
        "model.layers.0.input_layernorm -> q_proj, k_proj, v_proj",
        "model.layers.0.post_attention_layernorm -> gate_proj, up_proj",
        f"model.layers.0.self_attn.{V_O}",
        f"model.layers.0.mlp.{UP_DOWN}",
    ]
    (parallel, *_) = pairs(*first_layer("falcon-7b", tokens, valid))
    assert str(parallel) == "transformer.h.0.input_layernorm -> query_key_value, dense_h_to_4h"


@pytest.mark.parametrize(("name", "maker"), [("gpt-neox", "query_key_value"), ("phi3", "gate_up_proj")])
def test_only_the_rows_of_the_part_are_divided(tokens: Tensor, valid: Tensor, name: str, maker: str):
    runner, layer, group = first_layer(name, tokens, valid)
    (pair,) = [pair for pair in pairs(runner, layer, group) if pair.maker.endswith(maker)]
    (linear,) = [linear for linear in group if linear.name == pair.maker]
    module = runner.model.get_submodule(pair.maker)
    before, scale = module.weight.clone(), torch.linspace(0.5, 2, len(pair.rows))
    used = fold(runner, layer, pair, scale)
    assert used is not None
    part = "v" if maker == "query_key_value" else "up"
    assert torch.equal(pair.rows, linear.rows[part])
    others = torch.ones(len(before), dtype=torch.bool)
    others[pair.rows] = False
    assert torch.equal(module.weight[others], before[others])
    torch.testing.assert_close(module.weight[pair.rows], before[pair.rows] / used[:, None])
    torch.testing.assert_close(used, scale, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt-neox"])
def test_a_norms_scale_is_what_its_float16_weight_really_divides_by(tokens: Tensor, valid: Tensor, name: str):
    """What is folded differs from what was asked for by the rounding of the norm's weight, and by nothing more."""
    runner, layer, group = first_layer(name, tokens, valid)
    pair = pairs(runner, layer, group)[0]
    norm, readers = runner.model.get_submodule(pair.maker), [runner.model.get_submodule(x.name) for x in pair.readers]
    before = norm.weight.clone(), [reader.weight.clone() for reader in readers]
    asked = torch.rand(32, generator=torch.Generator().manual_seed(0)) * 3 + 0.4
    used = fold(runner, layer, pair, asked)
    offset = 1.0 if name == "gemma" else 0.0
    assert torch.equal(norm.weight, norm.weight.half().float())
    torch.testing.assert_close(used, (before[0] + offset) / (norm.weight + offset), rtol=1e-6, atol=0)
    torch.testing.assert_close(used, asked, rtol=0.1 if hasattr(norm, "bias") else 2e-3, atol=0)
    for reader, old in zip(readers, before[1], strict=True):
        assert torch.equal(reader.weight, old * used)


def test_a_norms_weight_of_zero_stays(tokens: Tensor, valid: Tensor):
    runner, layer, group = first_layer("llama", tokens, valid)
    layer.input_layernorm.weight[5] = 0
    used = fold(runner, layer, pairs(runner, layer, group)[0], torch.full((32,), 2.0))
    assert (used[5], layer.input_layernorm.weight[5]) == (1, 0)


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "falcon-7b"])
def test_a_pair_that_does_not_fold_changes_nothing(tokens: Tensor, valid: Tensor, name: str):
    runner, layer, group = first_layer(name, tokens, valid)
    before = {key: parameter.clone() for key, parameter in runner.model.named_parameters()}
    barred = [
        pair
        for pair in pairs(runner, layer, group)
        if str(pair).split(".", 3)[-1] in SKIPPED[name] or any(str(pair).endswith(x) for x in SKIPPED[name])
    ]
    assert barred
    for pair in barred:
        width = runner.model.get_submodule(pair.readers[0].name).in_features
        assert fold(runner, layer, pair, torch.linspace(0.5, 2, width)) is None
    assert all(torch.equal(parameter, before[key]) for key, parameter in runner.model.named_parameters())


def test_a_norm_that_something_else_reads_too_is_skipped(tokens: Tensor, valid: Tensor):
    """A router, say, or whatever is no linear that is quantized."""
    runner, layer, group = first_layer("llama", tokens, valid)
    barred = [linear for linear in group if linear.role != "q"]
    inputs = runner.gather(layer, barred)
    skipped = rescale(runner, layer, barred, inputs, {x.name: Weights(4) for x in barred}, "smoothquant", 0.5)
    assert "model.layers.0.input_layernorm -> k_proj, v_proj" in skipped


@pytest.mark.parametrize("method", RESCALINGS)
def test_no_hook_is_left(tokens: Tensor, valid: Tensor, method: str):
    model = rounded("llama")
    rescaled(model, tokens, valid, method)
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
