from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from pipeline import artifacts, models
from pipeline.quant.model import QuantizedModel, float_tensors
from tests import tiny

PARTS = ("codes", "scales", "activation_scales", "floats", "latent")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_a_quantized_model_reads_back_bit_for_bit(calibrated: QuantizedModel, tmp_path: Path):
    errors = pd.DataFrame({"layer": [0, 1], "sqnr": [20.5, 21.0]})
    calibrated.save(tmp_path / "ptq", {"method": "gptq"}, {"errors": errors})
    loaded, facts = QuantizedModel.load(tmp_path / "ptq")
    assert all(same(getattr(loaded, part), getattr(calibrated, part)) for part in PARTS)
    assert facts == {"method": "gptq", "weight_bits": 4, "activation_bits": 16}
    assert (loaded.weight_bits, loaded.activation_bits) == (4, 16)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ptq" / "errors.csv"), errors)


def test_the_same_model_gives_the_same_bytes(calibrated: QuantizedModel, tmp_path: Path):
    for name in ("a", "b"):
        calibrated.save(tmp_path / name, {}, {})
    assert artifacts.fingerprint(tmp_path / "a") == artifacts.fingerprint(tmp_path / "b")


def test_what_is_empty_has_no_file(calibrated: QuantizedModel, tmp_path: Path):
    bare = QuantizedModel(4, 0, calibrated.codes, calibrated.scales, {}, calibrated.floats)
    bare.save(tmp_path / "rtn", {}, {})
    found = {file.stem for file in (tmp_path / "rtn").glob("*.safetensors")}
    assert found == {"codes", "scales", "floats"}
    loaded, _ = QuantizedModel.load(tmp_path / "rtn")
    assert loaded.latent == loaded.activation_scales == {}


def test_a_changed_code_is_refused(calibrated: QuantizedModel, tmp_path: Path):
    calibrated.save(tmp_path / "ptq", {}, {})
    file = tmp_path / "ptq" / "codes.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"codes\.safetensors: its content has changed"):
        QuantizedModel.load(tmp_path / "ptq")


def test_scales_and_floats_hold_what_the_export_stores(calibrated: QuantizedModel):
    assert all(torch.equal(s.half().float(), s) for s in calibrated.scales.values())
    assert all(values.dtype == torch.float16 for values in calibrated.floats.values())


def test_a_float_model_gets_the_quantized_numbers(calibrated: QuantizedModel):
    model = tiny.llama(seed=9)
    calibrated.put_into(model)
    for name, codes in calibrated.codes.items():
        assert torch.equal(model.get_submodule(name).weight, codes.float() * calibrated.scales[name])
    for name, values in calibrated.floats.items():
        assert torch.equal(model.get_parameter(name), values.float())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_undoing_takes_the_activation_grids_away_and_leaves_the_weights(calibrated: QuantizedModel, tokens: Tensor):
    coarse = QuantizedModel(
        4, 8, calibrated.codes, calibrated.scales,
        {name: scale * 500 for name, scale in calibrated.activation_scales.items()}, calibrated.floats,
    )  # fmt: skip
    model, bare = tiny.llama(), tiny.llama()
    undo = coarse.put_into(model)
    QuantizedModel(4, 0, calibrated.codes, calibrated.scales, {}, calibrated.floats).put_into(bare)
    expected = bare(input_ids=tokens).logits
    assert not torch.allclose(model(input_ids=tokens).logits, expected, rtol=1e-2)
    undo()
    assert torch.equal(model(input_ids=tokens).logits, expected)


def test_a_model_of_another_shape_is_refused_with_the_tensors_that_differ(calibrated: QuantizedModel):
    with pytest.raises(ValueError, match=r"does not fit.*model\.layers\.2\."):
        calibrated.put_into(tiny.llama(layers=3))
    with pytest.raises(ValueError, match=r"does not fit.*lm_head\.weight"):
        calibrated.put_into(tiny.llama(tie=False))


def test_float_tensors_are_all_that_is_not_a_quantized_weight():
    model = tiny.llama()
    quantized = {linear.name for linear in models.linears(model)}
    kept = float_tensors(model, quantized)
    assert kept.keys() == {name for name, _ in model.named_parameters() if "norm" in name or "embed" in name}
    assert torch.equal(kept["model.norm.weight"], model.model.norm.weight.half())


def test_a_tensor_that_leaves_the_range_of_float16_is_named():
    model = tiny.llama()
    model.model.norm.weight.data[3] = 7e4
    with pytest.raises(ValueError, match=r"float16.*model\.norm\.weight"):
        float_tensors(model, set())
