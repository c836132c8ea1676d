"""Every model family calibrated, rescaled and exported: tiny random models."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.layers import Runner
from pipeline.calibration.rescale import Pair, fold, pairs, rescale
from pipeline.export.formats import export, load_exported
from pipeline.knobs.freezing import ROLES
from pipeline.knobs.scheme import Weights
from pipeline.models import forward, layout
from pipeline.quant.model import FLOAT_DTYPE
from tests.families import family, save
from tests.unit.layouts import NO_CACHE, calibrated, every_family, moved

# What rescaling folds in each layer (maker -> the parts of its readers), and what it must not.
GQA = ({"norm -> q k v", "norm -> gate up", "up -> down"}, {"v -> o"})
MHA = (GQA[0] | GQA[1], set())
SERIAL = ({"norm -> q k v", "norm -> up", "v -> o"}, {"up -> down"})  # GELU between up and down
FOLDS: dict[str, tuple[set[str], set[str]]] = {
    "llama": GQA,
    "longchat": MHA,
    "mistral": GQA,
    "qwen2": GQA,
    "qwen2-window": MHA,
    "qwen3": GQA,
    "gemma": GQA,
    "opt": ({"norm -> q k v", "norm -> up", "v -> o", "up -> down"}, set()),
    "stablelm": MHA,
    "stablelm-2": ({"norm -> q k v gate up", "up -> down"}, {"v -> o"}),
    "falcon-7b": ({"norm -> q k v up"}, {"v -> o", "up -> down"}),
    "falcon-40b": ({"norm -> q k v", "norm -> up"}, {"v -> o", "up -> down"}),
    "falcon-rw": SERIAL,
    "bloom": SERIAL,
    "gpt-neox": SERIAL,
    "phi3": GQA,
    "glm": GQA,
    "mamba": ({"norm -> in"}, set()),
}


@every_family
def test_layer_by_layer_is_the_whole_forward(name: str, tokens: Tensor, valid: Tensor):
    """What each linear reads, at valid positions, and what the last layer returns."""
    model = family(name)
    linears, layers = layout.linears(model), layout.decoder_layers(model)[1]
    inputs: dict[str, Tensor] = {}
    handles = forward.on_layer_inputs(model, linears, lambda x, value: inputs.update({x.name: value}))
    outputs: list[Tensor] = []
    handles.append(
        layers[-1].register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    )
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()

    runner = Runner.start(model, tokens, valid, 4, "float32")
    for index, layer in enumerate(layers):
        group = [x for x in linears if x.layer == index]
        gathered, observed = runner.gather(layer, group), runner.advance(layer, group, set())
        for linear in group:
            x = inputs[linear.name].reshape(*valid.shape, -1)[valid]
            torch.testing.assert_close(gathered[linear.name].hessian, x.T @ x, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(gathered[linear.name].absmax, x.abs().amax(dim=0), rtol=1e-4, atol=1e-5)
            assert float(observed[linear.name].greatest) == pytest.approx(float(x.max()), rel=1e-4)
    assert moved(torch.cat(runner.states), outputs[0]) < 1e-5


@every_family
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_calibrated_models_numbers_give_a_fresh_one_its_logits(name: str, method: str, tokens, valid):
    model, fresh, teacher = family(name), family(name), family(name)
    result = calibrated(model, tokens, valid, method).model
    called: set[str] = set()
    forward.on_layer_inputs(fresh, layout.linears(fresh), lambda x, _: called.add(x.name))
    undo = result.put_into(fresh)
    quantized, expected = fresh(input_ids=tokens).logits, model(input_ids=tokens).logits
    assert called == result.codes.keys() == result.inputs.keys()
    assert quantized.isfinite().all()
    assert 1e-4 < moved(quantized, expected) < 0.5  # 8-bit inputs a token
    undo()
    assert moved(fresh(input_ids=tokens).logits, expected) < 1e-6
    assert moved(expected, teacher(input_ids=tokens).logits) > 1e-3


@every_family
def test_the_export_reloads_as_the_same_numbers(name: str, tmp_path: Path, tokens: Tensor, valid: Tensor):
    scheme = "W4g16A8" if name in NO_CACHE else "W4g16A8KV4"
    result, reference = calibrated(family(name), tokens, valid, "rtn", scheme).model, family(name)
    out = tmp_path / "out"
    out.mkdir()
    facts = export(result, save(tmp_path / "teacher", name), "compressed-tensors", out)
    assert facts["logits_difference"] < 1e-4
    result.put_into(reference)
    loaded = load_exported(out, "float32")
    assert type(loaded) is type(reference)
    expected = reference(input_ids=tokens).logits
    logits = loaded(input_ids=tokens).logits
    assert (logits - expected).norm() / expected.norm() < 1e-3  # a code of the keys may cross a tie
    parameters = dict(loaded.named_parameters())
    for linear in result.codes:
        assert torch.equal(loaded.get_submodule(linear).weight, result.weight(linear))
    for parameter, values in result.floats.items():
        assert torch.equal(parameters[parameter], values.float()), parameter


def stored(name: str) -> PreTrainedModel:
    """The family's model with the numbers that an export holds."""
    model = family(name)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(FLOAT_DTYPE))
    return model


def described(pair: Pair) -> str:
    readers = sorted((role for reader in pair.readers for role in reader.parts()), key=ROLES.index)
    return f"{'norm' if pair.rows is None else {'o': 'v', 'down': 'up'}[readers[0]]} -> {' '.join(readers)}"


@every_family
@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_rescaling_folds_what_it_can_and_changes_no_logit(name: str, method: str, tokens, valid):
    model, linears = stored(name), layout.linears(family(name))
    before = model(input_ids=tokens).logits
    teacher, rescaled = stored(name), set()
    runner = Runner.start(model, tokens, valid, 4, "float32")
    for index, layer in enumerate(layout.decoder_layers(model)[1]):
        group = [x for x in linears if x.layer == index]
        inputs = runner.gather(layer, group)
        found_pairs = {str(pair): pair for pair in pairs(runner, layer, group)}
        skipped = rescale(runner, layer, group, inputs, {x.name: Weights(4) for x in group}, method, 0.5)
        folds, cannot = FOLDS[name]
        assert {described(pair) for pair in found_pairs.values()} == folds | cannot
        assert {described(found_pairs[pair]) for pair in skipped} == cannot
        rescaled |= {reader.name for pair in found_pairs.keys() - skipped for reader in found_pairs[pair].readers}
        fresh = runner.gather(layer, group)
        for linear in group:
            old, new = inputs[linear.name], fresh[linear.name]
            assert moved(old.hessian, new.hessian) < 2e-3
            assert moved(old.absmax, new.absmax) < 2e-3
        runner.advance(layer, group, set())
    assert moved(model(input_ids=tokens).logits, before) < 5e-5
    for name in rescaled:
        assert moved(model.get_submodule(name).weight, teacher.get_submodule(name).weight) > 0.01


def test_a_fold_that_is_none_is_seen_beside_activations_that_dwarf_it(tokens: Tensor, valid: Tensor):
    """GELU stands between Bloom's up and down; a channel of the residual stream is as large as some models have it."""
    model = stored("bloom")
    model.transformer.word_embeddings_layernorm.bias[3] = 2e3
    layer = layout.decoder_layers(model)[1][0]
    runner = Runner.start(model, tokens, valid, 4, "float32")
    group = [x for x in layout.linears(model) if x.layer == 0]
    by_name = {described(pair): pair for pair in pairs(runner, layer, group)}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scale = 1 + 0.2 * torch.rand(128, generator=torch.Generator().manual_seed(0))
    assert fold(runner, layer, by_name["up -> down"], scale) is None
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert fold(runner, layer, by_name["v -> o"], scale[:32]) is not None
