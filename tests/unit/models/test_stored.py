"""Weights that are stored in fewer bits become code x scale, exactly, or are refused; codes are never weights."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.export import compressed_tensors
from pipeline.knobs.scheme import Weights
from pipeline.models import layout, saved
from pipeline.quant.model import QuantizedModel, float_tensors
from pipeline.quant.weights import dequantize, quantize, weight_step
from tests import tiny
from tests.unit.models.coded import SCHEMES, Coded, assert_becomes, compressed, in_blocks, write

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_fp8_in_blocks(tmp_path: Path, shards: int, scale_dtype: torch.dtype):
    """48 rows in blocks of 32: transformers' own reader would take blocks of 24."""
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32]}
    expected = write(tmp_path / "model", said, lambda w: in_blocks(w, 32, 32, scale_dtype), shards)
    assert_becomes(tmp_path / "model", expected, "fp8 (e4m3), dequantized")


def by_tensor(weight: Tensor, scale: str) -> Coded:
    step = weight.abs().max() / 448
    codes = (weight / step).to(torch.float8_e4m3fn)
    return {"weight": codes, scale: step, "input_scale": torch.tensor(1.0)}, codes.float() * step


def by_row(weight: Tensor) -> Coded:
    step = weight.abs().amax(dim=1, keepdim=True) / 448
    codes = (weight / step).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": step}, codes.float() * step


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale"])
def test_fp8_with_a_scale_a_tensor(tmp_path: Path, scale: str):
    expected = write(tmp_path / "model", {"quant_method": "fp8"}, lambda w: by_tensor(w, scale))
    assert_becomes(tmp_path / "model", expected, "fp8, dequantized")


def test_fp8_with_a_scale_a_row(tmp_path: Path):
    expected = write(tmp_path / "model", {"quant_method": "fbgemm_fp8"}, by_row)
    assert_becomes(tmp_path / "model", expected, "fbgemm_fp8, dequantized")


def test_modelopt_says_its_algorithm_in_a_file_of_its_own(tmp_path: Path):
    expected = write(tmp_path / "model", None, lambda w: by_tensor(w, "weight_scale"))
    side = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
    (tmp_path / "model" / "hf_quant_config.json").write_text(json.dumps(side))
    assert_becomes(tmp_path / "model", expected, "modelopt (FP8), dequantized")


def fp4(weight: Tensor) -> Coded:
    """ModelOpt's layout: groups of 16, scales in FP8, and one of the tensor."""
    groups = weight.unflatten(1, (-1, 16))
    overall = weight.abs().max() / (6 * 448)
    scale = (groups.abs().amax(dim=2) / 6 / overall).clamp(min=2**-6).to(torch.float8_e4m3fn)
    step = scale.float() * overall
    codes = (groups / step[:, :, None] - FP4.reshape(-1, 1, 1, 1)).abs().argmin(dim=0).flatten(1)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    value = (FP4[codes].unflatten(1, (-1, 16)) * step[:, :, None]).flatten(1)
    parts = {"weight": packed, "weight_scale": scale, "weight_scale_2": overall, "input_scale": torch.tensor(1.0)}
    return parts, value


def test_modelopt_nvfp4(tmp_path: Path):
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    expected = write(tmp_path / "model", said, fp4)
    assert_becomes(tmp_path / "model", expected, "modelopt (NVFP4), dequantized")


def awq(weight: Tensor, zero_point: bool = True) -> Coded:
    """AutoAWQ's gemm layout: [in, out], eight codes an int32 in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    groups = weight.T.unflatten(0, (-1, 16))  # (groups, 16, out)
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    scale = ((high - low) / 15).half() if zero_point else (groups.abs().amax(dim=1) / 7).half()
    zero = (-low / scale.float()).round().clamp(0, 15) if zero_point else torch.full_like(low, 8)
    codes = ((groups / scale.float()[:, None]).round() + zero[:, None]).clamp(0, 15)
    value = ((codes - zero[:, None]) * scale.float()[:, None]).flatten(0, 1).T

    def packed(codes: Tensor) -> Tensor:
        order = codes.to(torch.int64).unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return (order << torch.arange(0, 32, 4)).sum(dim=2).to(torch.uint32).view(torch.int32)

    parts = {"qweight": packed(codes.flatten(0, 1)), "scales": scale}
    return parts | ({"qzeros": packed(zero)} if zero_point else {}), value


@pytest.mark.parametrize("zero_point", [True, False])
def test_awq(tmp_path: Path, zero_point: bool):
    said = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": zero_point}
    expected = write(tmp_path / "model", said, lambda w: awq(w, zero_point))
    assert_becomes(tmp_path / "model", expected, "awq (gemm), dequantized")


@pytest.mark.parametrize("kind", SCHEMES)
def test_compressed_tensors(tmp_path: Path, kind: str):
    layout = kind.partition(",")[0]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES[kind]))
    said = QuantizationConfig(
        config_groups={"group_0": scheme}, format=layout, quantization_status="compressed", ignore=["lm_head"]
    ).model_dump(mode="json")
    said["config_groups"]["group_0"]["format"] = layout
    expected = write(tmp_path / "model", said, compressed(scheme, layout))
    assert_becomes(tmp_path / "model", expected, f"compressed-tensors ({layout}), dequantized")


@pytest.mark.parametrize("tie", [False, True])
def test_an_export_of_several_schemes_becomes_codes_times_scales(tmp_path: Path, tie: bool):
    """transformers' own reader takes the first group's bits for all."""
    model, folder = tiny.llama(tie=tie), tmp_path / "model"
    folder.mkdir()
    schemes = {x.name: Weights(8) if x.role == "down" else Weights(4, group=16) for x in layout.linears(model)}
    schemes["model.embed_tokens"] = Weights(6)
    steps = {name: weight_step(model.get_submodule(name).weight, scheme) for name, scheme in schemes.items()}
    codes = {n: quantize(model.get_submodule(n).weight, steps[n], s).to(torch.int8) for n, s in schemes.items()}
    quantized = QuantizedModel(schemes, codes, steps, floats=float_tensors(model, set(codes)))
    compressed_tensors.write(quantized, model, folder, folder)
    model.generation_config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    expected = {name: values.float() for name, values in quantized.floats.items()}
    expected |= {f"{n}.weight": dequantize(codes[n], steps[n], schemes[n]) for n in codes}
    assert_becomes(folder, expected, "compressed-tensors (mixed-precision), dequantized")


def test_an_export_with_a_missing_tensor_does_not_load(tmp_path: Path):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES["pack-quantized"]))
    said = compressed_tensors.quantization_config({"a": Weights(4)}, ["lm_head"])
    write(tmp_path / "model", said, compressed(scheme, "pack-quantized"))
    saved.load_model(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    for name in ("model.layers.1.mlp.up_proj.weight_packed", "model.layers.1.mlp.up_proj.weight_scale"):
        save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"no causal language model .* lacks {name}"):
            saved.load_model(tmp_path / "model")
