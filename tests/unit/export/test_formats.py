"""Every format: what transformers loads from the folder is what was quantized, and what is damaged is caught."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.export import formats
from pipeline.export.formats import EXPORT_FORMATS, Format, export, same_logits, same_numbers
from pipeline.quant.activations import quantize_inputs, read_scales
from pipeline.quant.methods import rtn
from pipeline.quant.model import QuantizedModel
from tests import tiny

Q = "model.layers.0.self_attn.q_proj"


def rounded(start: QuantizedModel, bits: int) -> QuantizedModel:
    """The tiny model, rounded to nearest."""
    weights = {name: rtn(tiny.llama().get_submodule(name).weight, None, bits) for name in start.codes}
    codes, scales = ({name: getattr(w, part) for name, w in weights.items()} for part in ("codes", "scale"))
    return QuantizedModel(bits, 16, codes, scales, start.activation_scales, start.floats)


@pytest.fixture(scope="module", params=[4, 8], ids=["4 bits", "8 bits"])
def quantized(request: pytest.FixtureRequest, calibrated: QuantizedModel) -> QuantizedModel:
    return calibrated if request.param == 4 else rounded(calibrated, 8)


@pytest.fixture(scope="module", params=EXPORT_FORMATS)
def exported(request, quantized: QuantizedModel, teacher_folder: Path, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("export")
    return folder, export(quantized, teacher_folder, request.param, folder)


def test_transformers_loads_the_very_same_weights(exported, quantized: QuantizedModel, tokens: Tensor):
    folder, _ = exported
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model(input_ids=tokens)  # decompresses
    for name in quantized.codes:
        assert torch.equal(model.get_submodule(name).weight, quantized.codes[name].float() * quantized.scales[name])
    parameters = dict(model.named_parameters())
    for name, values in quantized.floats.items():
        assert torch.equal(parameters[name], values.float())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_with_its_activation_scales_the_reloaded_model_says_the_same(
    exported, quantized: QuantizedModel, tokens: Tensor
):
    folder, _ = exported
    model, reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tiny.llama()
    quantized.put_into(reference)
    scales, bits = read_scales(json.loads((folder / formats.ACTIVATION_SCALES).read_text()))
    assert scales == quantized.activation_scales
    quantize_inputs(model, scales, bits)
    torch.testing.assert_close(model(input_ids=tokens).logits, reference(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_tokenizer_comes_along(exported):
    found = AutoTokenizer.from_pretrained(exported[0])
    assert found("permafrost")["input_ids"] == tiny.tokenizer()("permafrost")["input_ids"]


def test_the_facts_are_sizes_of_the_file(exported, quantized: QuantizedModel):
    folder, facts = exported
    stored = (folder / "model.safetensors").stat().st_size
    bits, weights, rows = quantized.weight_bits, 2 * 9 * 32 * 32, 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert sum(codes.numel() for codes in quantized.codes.values()) == weights
    total = weights + 259 * 32 + 5 * 32
    assert facts["weight_bytes"] == stored
    assert facts["bits_per_weight"] == pytest.approx(8 * stored / total)
    assert facts["bits_per_quantized_weight"] == pytest.approx(bits + 16 * rows / weights)
    assert 0 <= facts["logits_difference"] < 1e-4


def test_an_unknown_format_is_answered_with_those_there_are(quantized: QuantizedModel, teacher_folder, tmp_path: Path):
    with pytest.raises(ValueError, match="unknown export format 'compressed'; did you mean 'compressed-tensors'"):
        export(quantized, teacher_folder, "compressed", tmp_path)


def one_code_off(model: QuantizedModel) -> QuantizedModel:
    codes = model.codes[Q].clone()
    codes[3, 5] ^= 1
    return dataclasses.replace(model, codes={**model.codes, Q: codes})


def one_scale_off(model: QuantizedModel) -> QuantizedModel:
    scale = model.scales[Q].clone()
    scale[3] = torch.nextafter(scale[3].half(), torch.tensor(9).half()).float()
    return dataclasses.replace(model, scales={**model.scales, Q: scale})


def one_norm_off(model: QuantizedModel) -> QuantizedModel:
    norm = model.floats["model.norm.weight"] * 1.5
    return dataclasses.replace(model, floats={**model.floats, "model.norm.weight": norm})


def one_linear_less(model: QuantizedModel) -> QuantizedModel:
    kept = {name: codes for name, codes in model.codes.items() if name != Q}
    return dataclasses.replace(model, codes=kept)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_code_off, rf"codes or scales read back from the export differ in 1 linears: \['{Q}'\]"),
        (one_scale_off, rf"codes or scales read back from the export differ in 1 linears: \['{Q}'\]"),
        (one_linear_less, rf"the export holds other linears: \['{Q}'\]"),
        (one_norm_off, "the reloaded model's logits differ by"),
    ],
)
def test_a_writer_that_writes_other_numbers_is_caught(
    quantized: QuantizedModel, teacher_folder, tmp_path: Path, monkeypatch, damage: Callable, message: str
):
    sound = EXPORT_FORMATS["compressed-tensors"]
    broken = Format(lambda model, *rest: sound.write(damage(model), *rest), sound.read)
    monkeypatch.setitem(EXPORT_FORMATS, "compressed-tensors", broken)
    with pytest.raises(ValueError, match=message):
        export(quantized, teacher_folder, "compressed-tensors", tmp_path)


def test_a_single_bit_is_enough_for_the_numbers_to_differ(quantized: QuantizedModel):
    same_numbers(quantized, quantized.codes, quantized.scales)
    for broken in (one_code_off(quantized), one_scale_off(quantized)):
        with pytest.raises(ValueError, match="differ in 1 linears"):
            same_numbers(quantized, broken.codes, broken.scales)


def test_a_reloaded_weight_that_is_not_code_times_scale_is_caught(quantized: QuantizedModel):
    """Even where the logits hardly move."""
    reference, loaded = tiny.llama(), tiny.llama()
    for model in (reference, loaded):
        quantized.put_into(model)()
    assert same_logits(reference, loaded, quantized) == 0
    weight = loaded.get_submodule(Q).weight
    weight[2, 2] = torch.nextafter(weight[2, 2], torch.tensor(9.0))
    with pytest.raises(ValueError, match="not codes times scales in 1 linears"):
        same_logits(reference, loaded, quantized)


def test_logits_that_are_not_numbers_do_not_pass(quantized: QuantizedModel):
    reference, loaded = tiny.llama(), tiny.llama()
    for model in (reference, loaded):
        quantized.put_into(model)()
    loaded.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="the reloaded model's logits differ by nan"):
        same_logits(reference, loaded, quantized)
