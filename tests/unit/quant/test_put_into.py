"""A float model that gets the numbers of a quantized one."""

import pytest
import torch
from torch import Tensor

from pipeline.quant import weights
from pipeline.quant.model import QuantizedModel, untie_head
from tests import tiny
from tests.unit.quant.mixed import built, same


def test_a_float_model_gets_the_quantized_numbers(calibrated: QuantizedModel):
    model = tiny.llama(seed=9)
    calibrated.put_into(model)
    for name, codes in calibrated.codes.items():
        assert torch.equal(model.get_submodule(name).weight, codes.float() * calibrated.steps[name].scale)
    for name, values in calibrated.floats.items():
        assert torch.equal(model.get_parameter(name), values.float())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_float_model_gets_the_numbers_of_a_mixed_scheme():
    mixed, model = built(), tiny.llama(seed=9)
    mixed.put_into(model)
    for name, scheme in mixed.schemes.items():
        expected = weights.dequantize(mixed.codes[name], mixed.steps[name], scheme)
        assert torch.equal(model.get_submodule(name).weight, expected)
        assert torch.equal(mixed.weight(name), expected)
    gate = model.model.layers[1].mlp.gate_proj.weight
    assert torch.equal(gate, tiny.llama().model.layers[1].mlp.gate_proj.weight.half().float())


def test_a_quantized_head_gets_a_weight_of_its_own_and_the_embeddings_are_left_alone():
    mixed, model = built(), tiny.llama()
    embeddings = model.model.embed_tokens.weight
    assert model.lm_head.weight is embeddings
    mixed.put_into(model)
    assert model.model.embed_tokens.weight is embeddings
    assert model.lm_head.weight is not embeddings
    assert torch.equal(embeddings, tiny.llama().model.embed_tokens.weight.half().float())
    assert torch.equal(model.lm_head.weight, mixed.weight("lm_head"))
    assert not torch.equal(model.lm_head.weight, embeddings)
    assert not model.config.tie_word_embeddings
    assert not model.lm_head.weight.requires_grad


def test_a_head_of_its_own_or_in_float_stays_as_it_is():
    model = tiny.llama(tie=False)
    head = model.lm_head.weight
    untie_head(model, {"lm_head"})
    assert model.lm_head.weight is head
    tied = tiny.llama()
    untie_head(tied, {"model.layers.0.mlp.up_proj"})
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert tied.config.tie_word_embeddings


def test_undoing_takes_the_grids_of_inputs_and_cache_away_and_leaves_the_weights(tokens: Tensor):
    mixed, model, bare = built(), tiny.llama(), tiny.llama()
    undo = mixed.put_into(model)
    QuantizedModel(mixed.schemes, mixed.codes, mixed.steps, floats=mixed.floats).put_into(bare)
    expected = bare(input_ids=tokens).logits
    assert not torch.allclose(model(input_ids=tokens).logits, expected, rtol=1e-2)
    undo()
    assert torch.equal(model(input_ids=tokens).logits, expected)


@pytest.mark.parametrize("part", ["inputs", "kv_cache"])
def test_inputs_and_cache_are_quantized_each_by_itself(part: str, tokens: Tensor):
    mixed, model, bare = built(), tiny.llama(), tiny.llama()
    parts = {"schemes": mixed.schemes, "codes": mixed.codes, "steps": mixed.steps, "floats": mixed.floats}
    QuantizedModel(**parts).put_into(bare)
    QuantizedModel(**parts, **{part: getattr(mixed, part)}).put_into(model)
    assert not torch.allclose(model(input_ids=tokens).logits, bare(input_ids=tokens).logits, rtol=1e-2)


def test_each_linear_reads_its_input_through_its_own_quantizer(tokens: Tensor):
    mixed, model, quantized = built(), tiny.llama(), {}
    plain = {}
    for name in mixed.inputs:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, name=name: plain.update({name: args[0]}))
    mixed.put_into(model)
    for name in mixed.inputs:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, args, __, name=name: quantized.update({name: args[0]}))
    with torch.no_grad():
        model(input_ids=tokens)
    assert quantized.keys() == mixed.inputs.keys()
    for name, quantizer in mixed.inputs.items():
        assert torch.equal(quantized[name], quantizer(plain[name]))
        assert not torch.equal(quantized[name], plain[name])


def test_a_model_of_another_shape_is_refused_with_the_tensors_that_differ(calibrated: QuantizedModel):
    with pytest.raises(ValueError, match=r"does not fit.*model\.layers\.2\."):
        calibrated.put_into(tiny.llama(layers=3))
    with pytest.raises(ValueError, match=r"does not fit.*lm_head\.weight"):
        calibrated.put_into(tiny.llama(tie=False))
    with pytest.raises(ValueError, match=r"does not fit.*model\.layers\.0\.mlp\.down_proj\.weight"):
        calibrated.put_into(tiny.llama(hidden=64))


def test_a_refused_model_is_left_as_it_was(calibrated: QuantizedModel):
    model = tiny.llama(hidden=64)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="does not fit"):
        calibrated.put_into(model)
    assert same(before, dict(model.named_parameters()))
