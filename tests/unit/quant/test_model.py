from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from pipeline.artifacts import contract
from pipeline.artifacts.contract import QUANTIZED
from pipeline.knobs.scheme import HEAD, Activations, KVCache, Override, Scheme, Weights
from pipeline.models import layout
from pipeline.quant import weights
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel, float_tensors, untie_head
from pipeline.rounding.methods import rtn
from tests import tiny

PARTS = ("codes", "floats", "latent")
STATIC, DYNAMIC = Activations(8), Activations(4, symmetric=False, dynamic=True)
MIXED = Scheme(
    Weights(4),
    STATIC,
    KVCache(4, symmetric=False, group=8),
    (
        Override("down", Weights(3, symmetric=False, group=16), DYNAMIC),
        Override("q", Weights(8, group=8), Activations(16, False, observer="percentile", percentile=99.9)),
        Override("model.layers.1.mlp.gate_proj", Weights(0), Activations(0)),
        Override("lm_head", Weights(8, symmetric=False)),
    ),
)


def built() -> QuantizedModel:
    """The tiny model rounded to nearest under a mixed scheme, and its inputs' grids, those of static ones made up."""
    model, made = tiny.llama(), QuantizedModel(kv_cache=MIXED.kv_cache)
    for name, role in [(linear.name, linear.role) for linear in layout.linears(model)] + [("lm_head", HEAD)]:
        made_of, activations = MIXED.of(name, role)
        if made_of.bits:
            rounded = rtn(model.get_submodule(name).weight, None, made_of)
            made.schemes[name], made.codes[name], made.steps[name] = made_of, rounded.codes, rounded.step
            made.latent[name] = rounded.latent.clone()
        if activations.bits:
            made_up = Step(torch.tensor(3e-3), torch.tensor(0.0 if activations.symmetric else 100.0))
            made.inputs[name] = Quantizer(activations, None if activations.dynamic else made_up)
    untie_head(model, set(made.codes))
    made.floats = float_tensors(model, set(made.codes))
    return made


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def assert_same(a: QuantizedModel, b: QuantizedModel) -> None:
    assert (a.schemes, a.kv_cache, a.inputs) == (b.schemes, b.kv_cache, b.inputs)
    assert all(same(getattr(a, part), getattr(b, part)) for part in PARTS)
    for part in Step._fields:
        ours, theirs = ({name: getattr(step, part) for name, step in x.steps.items()} for x in (a, b))
        assert same(ours, theirs)


def test_a_quantized_model_reads_back_bit_for_bit(calibrated: QuantizedModel, tmp_path: Path):
    errors = pd.DataFrame({"layer": [0, 1], "sqnr": [20.5, 21.0]})
    calibrated.save(tmp_path / "ptq", {"method": "gptq"}, {"errors": errors})
    loaded, facts = QuantizedModel.load(tmp_path / "ptq")
    assert_same(loaded, calibrated)
    assert facts == {"method": "gptq"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ptq" / "errors.csv"), errors)


def test_a_mixed_scheme_reads_back_bit_for_bit(tmp_path: Path):
    """Asymmetric weights, groups, 0 to 8 bits, static, dynamic and no inputs, a KV cache, the head."""
    mixed = built()
    assert len({*mixed.schemes.values()}) == 4
    assert {q.step is None for q in mixed.inputs.values()} == {True, False}
    assert "model.layers.1.mlp.gate_proj" not in mixed.codes.keys() | mixed.inputs.keys()
    assert mixed.codes["lm_head"].max() > 127
    mixed.save(tmp_path / "ptq", {}, {})
    loaded, _ = QuantizedModel.load(tmp_path / "ptq")
    assert_same(loaded, mixed)
    assert all(torch.equal(loaded.weight(name), mixed.weight(name)) for name in mixed.codes)


@pytest.mark.parametrize("bits", [2, 8])
def test_every_zero_point_reads_back(bits: int, tmp_path: Path):
    scheme, zeros = Weights(bits, symmetric=False), torch.arange(2.0**bits)[:, None]
    step = Step(torch.full_like(zeros, 0.5), zeros)
    made = QuantizedModel({"a": scheme}, {"a": torch.zeros(2**bits, 4, dtype=torch.uint8)}, {"a": step})
    made.save(tmp_path / "ptq", {}, {})
    assert_same(QuantizedModel.load(tmp_path / "ptq")[0], made)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        built().save(tmp_path / name, {}, {})
    assert contract.fingerprint(tmp_path / "a") == contract.fingerprint(tmp_path / "b")


def one_input_changed(mixed: QuantizedModel) -> None:
    mixed.inputs["model.layers.0.self_attn.v_proj"] = Quantizer(Activations(16), Step(torch.ones(()), torch.zeros(())))


def one_zero_point_changed(mixed: QuantizedModel) -> None:
    mixed.steps["lm_head"].zero[0] += 1


def cache_changed(mixed: QuantizedModel) -> None:
    mixed.kv_cache = KVCache(8)


@pytest.mark.parametrize("change", [one_input_changed, one_zero_point_changed, cache_changed])
def test_whatever_changes_the_numbers_changes_the_fingerprint(tmp_path: Path, change):
    mixed = built()
    mixed.save(tmp_path / "a", {}, {})
    change(mixed)
    mixed.save(tmp_path / "b", {}, {})
    assert contract.fingerprint(tmp_path / "a") != contract.fingerprint(tmp_path / "b")


def test_what_is_empty_has_no_file(calibrated: QuantizedModel, tmp_path: Path):
    bare = QuantizedModel(calibrated.schemes, calibrated.codes, calibrated.steps, floats=calibrated.floats)
    bare.save(tmp_path / "rtn", {}, {})
    found = {file.stem for file in (tmp_path / "rtn").glob("*.safetensors")}
    assert found == {"codes", "scales", "floats"}
    loaded, _ = QuantizedModel.load(tmp_path / "rtn")
    assert loaded.latent == loaded.inputs == {}
    assert loaded.kv_cache.bits == 0


@pytest.mark.parametrize("name", ["codes", "scales", "zero_points", "floats", "latent"])
def test_a_changed_tensor_is_refused(name: str, tmp_path: Path):
    built().save(tmp_path / "ptq", {}, {})
    file = tmp_path / "ptq" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}\.safetensors: its content has changed"):
        QuantizedModel.load(tmp_path / "ptq")


def test_another_artifact_is_refused(tmp_path: Path):
    with contract.writing(tmp_path / "corpus", contract.CORPUS):
        pass
    with pytest.raises(
        ValueError,
        match=rf"holds 'corpus' version {contract.CORPUS.version}, but 'quantized' version {QUANTIZED.version}",
    ):
        QuantizedModel.load(tmp_path / "corpus")


def test_scales_and_floats_hold_what_the_export_stores(calibrated: QuantizedModel):
    for model in (calibrated, built()):
        assert all(torch.equal(step.scale.half().float(), step.scale) for step in model.steps.values())
        assert all(values.dtype == torch.float16 for values in model.floats.values())


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
    mixed, model, seen = built(), tiny.llama(), {}
    plain = {}
    for name in mixed.inputs:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, name=name: plain.update({name: args[0]}))
    mixed.put_into(model)
    for name in mixed.inputs:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0]}))
    with torch.no_grad():
        model(input_ids=tokens)
    assert seen.keys() == mixed.inputs.keys()
    for name, quantizer in mixed.inputs.items():
        assert torch.equal(seen[name], quantizer(plain[name]))
        assert not torch.equal(seen[name], plain[name])


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


def test_float_tensors_are_all_that_is_not_a_quantized_weight():
    model = tiny.llama()
    quantized = {linear.name for linear in layout.linears(model)}
    kept = float_tensors(model, quantized)
    assert kept.keys() == {name for name, _ in model.named_parameters() if "norm" in name or "embed" in name}
    assert torch.equal(kept["model.norm.weight"], model.model.norm.weight.half())


def test_the_bias_of_a_quantized_linear_stays_in_float():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert float_tensors(model, {"0"}).keys() == {"0.bias"}


def test_tensors_that_are_not_finite_are_all_named_and_those_beyond_float16_are_kept_in_another_dtype():
    model = tiny.llama()
    model.model.norm.weight.data[3] = torch.nan
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = -torch.inf
    with pytest.raises(ValueError, match=r"not finite: .*layers\.1\.mlp\.up_proj\.weight.*model\.norm\.weight"):
        float_tensors(model, set())
    with pytest.raises(ValueError, match=r"not finite: \['model\.norm\.weight'\]"):
        float_tensors(model, {"model.layers.1.mlp.up_proj"})
    model.model.norm.weight.data[3] = 7e4
    kept = float_tensors(model, {"model.layers.1.mlp.up_proj"})["model.norm.weight"]
    assert torch.equal(kept.float(), model.model.norm.weight)
