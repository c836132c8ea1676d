from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.artifacts import contract
from pipeline.artifacts.contract import QUANTIZED
from pipeline.knobs.scheme import Activations, KVCache, Weights
from pipeline.models import layout
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel, float_tensors
from tests import tiny
from tests.unit.quant.mixed import built, same

PARTS = ("codes", "floats", "latent")


def assert_same(a: QuantizedModel, b: QuantizedModel) -> None:
    assert (a.schemes, a.kv_cache, a.inputs) == (b.schemes, b.kv_cache, b.inputs)
    assert all(same(getattr(a, part), getattr(b, part)) for part in PARTS)
    for part in Step._fields:
        ours, theirs = ({name: getattr(step, part) for name, step in x.steps.items()} for x in (a, b))
        assert same(ours, theirs)


def test_a_quantized_model_reads_back_bit_for_bit(calibrated: QuantizedModel, tmp_path: Path):
    errors = pd.DataFrame({"layer": [0, 1], "sqnr": [20.5, 21.0]})
    calibrated.save(tmp_path / "ptq", {"method": "gptq"}, {"errors": errors})
    loaded, facts = QuantizedModel.load(tmp_path / "ptq", latent=True)
    assert_same(loaded, calibrated)
    assert facts == {"method": "gptq"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ptq" / "errors.csv"), errors)
    assert calibrated.latent
    assert QuantizedModel.load(tmp_path / "ptq")[0].latent == {}, "they are four times the codes"


def test_a_mixed_scheme_reads_back_bit_for_bit(tmp_path: Path):
    """Asymmetric weights, groups, 0 to 8 bits, static, dynamic and no inputs, a KV cache, the head."""
    mixed = built()
    assert len({*mixed.schemes.values()}) == 4
    assert {q.step is None for q in mixed.inputs.values()} == {True, False}
    assert "model.layers.1.mlp.gate_proj" not in mixed.codes.keys() | mixed.inputs.keys()
    assert mixed.codes["lm_head"].max() > 127
    mixed.save(tmp_path / "ptq", {}, {})
    loaded, _ = QuantizedModel.load(tmp_path / "ptq", latent=True)
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
    stems = {file.stem for file in (tmp_path / "rtn").glob("*.safetensors")}
    assert stems == {"codes", "scales", "floats"}
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
