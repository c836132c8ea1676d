"""An export that is not what was quantized, to a single bit, is caught."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pipeline.export.formats import EXPORT_FORMATS, export
from pipeline.export.proof import check_state, probe_tokens, same_logits
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.unit.export.conftest import Exported
from tests.unit.export.quantized import Q, quantized


def one_code_off(model: QuantizedModel) -> QuantizedModel:
    codes = model.codes[Q].clone()
    codes[3, 5] ^= 1
    return dataclasses.replace(model, codes={**model.codes, Q: codes})


def one_scale_off(model: QuantizedModel) -> QuantizedModel:
    scale = model.steps[Q].scale.clone()
    scale[3, 0] = torch.nextafter(scale[3, 0].half(), torch.tensor(9).half()).float()
    return dataclasses.replace(model, steps={**model.steps, Q: Step(scale, model.steps[Q].zero)})


def one_norm_off(model: QuantizedModel) -> QuantizedModel:
    norm = model.floats["model.norm.weight"] * 1.5
    return dataclasses.replace(model, floats={**model.floats, "model.norm.weight": norm})


def one_linear_less(model: QuantizedModel) -> QuantizedModel:
    kept = {name: codes for name, codes in model.codes.items() if name != Q}
    return dataclasses.replace(model, codes=kept)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_code_off, rf"codes or scales read back from the export differ in 1 weights: \['{Q}'\]"),
        (one_scale_off, rf"codes or scales read back from the export differ in 1 weights: \['{Q}'\]"),
        (one_linear_less, rf"the export holds other weights: \['{Q}'\]"),
        (one_norm_off, r"the reloaded model's state differs in 1 tensors: \['model.norm.weight'\]"),
    ],
)
def test_a_writer_that_writes_other_numbers_is_caught(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable, message: str
):
    sound = EXPORT_FORMATS["compressed-tensors"]
    broken = sound._replace(write=lambda model, *rest: sound.write(damage(model), *rest))
    monkeypatch.setitem(EXPORT_FORMATS, "compressed-tensors", broken)
    with pytest.raises(ValueError, match=message):
        export(quantized("groups"), teacher_folder, "compressed-tensors", tmp_path)


@pytest.mark.parametrize("damage", [one_code_off, one_scale_off])
def test_of_a_dequantized_model_too_a_single_bit_is_caught(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable
):
    sound = EXPORT_FORMATS["dequantized"]
    broken = sound._replace(write=lambda model, *rest: sound.write(damage(model), *rest))
    monkeypatch.setitem(EXPORT_FORMATS, "dequantized", broken)
    with pytest.raises(ValueError, match=rf"not codes times scales in 1 linears: \['{Q}'\]"):
        export(quantized("asymmetric"), teacher_folder, "dequantized", tmp_path)


def test_a_damaged_file_does_not_pass_for_what_was_quantized(exported: Exported, tmp_path: Path):
    folder, _ = exported("compressed-tensors", "W4")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{Q}.weight_packed"][7, 2] ^= 1 << 13
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="differ in 1 weights"):
        EXPORT_FORMATS["compressed-tensors"].check(quantized("W4"), tiny.llama(), tmp_path)


@pytest.fixture
def twins() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models with the same quantized weights."""
    both = tiny.llama(), tiny.llama()
    for model in both:
        quantized("W4").put_into(model)()
    return both


def test_a_reloaded_weight_that_is_not_code_times_scale_is_caught(twins: tuple[PreTrainedModel, PreTrainedModel]):
    """Even where the logits hardly move."""
    reference, loaded = twins
    check_state(reference, loaded, quantized("W4"))
    assert same_logits(reference, loaded, probe_tokens(reference)) == 0
    weight = loaded.get_submodule(Q).weight
    weight[2, 2] = torch.nextafter(weight[2, 2], torch.tensor(9.0))
    with pytest.raises(ValueError, match="not codes times scales in 1 linears"):
        check_state(reference, loaded, quantized("W4"))


def test_logits_that_are_not_numbers_do_not_pass(twins: tuple[PreTrainedModel, PreTrainedModel]):
    reference, loaded = twins
    loaded.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="the reloaded model's logits differ by nan"):
        same_logits(reference, loaded, probe_tokens(reference))
