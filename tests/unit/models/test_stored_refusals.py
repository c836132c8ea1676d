"""What is stored in fewer bits and cannot be dequantized is refused, with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor

from pipeline.export import compressed_tensors
from pipeline.knobs.scheme import Weights
from tests.unit.models.coded import SCHEMES, Coded, compressed, in_blocks, refused, write


@pytest.mark.parametrize("method", ["aqlm", "hqq", "mxfp4", "something new"])
def test_a_method_that_cannot_be_dequantized_is_refused(tmp_path: Path, method: str):
    write(tmp_path / "model", {"quant_method": method}, lambda w: ({"weight": w}, w))
    assert f"its weights are stored by {method!r}, which cannot be dequantized here" in refused(tmp_path / "model")


@pytest.mark.parametrize("method", ["fp8", "awq", "fbgemm_fp8", "gptq", "bitsandbytes"])
def test_a_config_that_speaks_of_codes_where_there_are_none_is_refused(tmp_path: Path, method: str):
    write(tmp_path / "model", {"quant_method": method}, lambda w: ({"weight": w}, w))
    assert f"says {method!r}, but no tensor is stored so" in refused(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_codes_that_no_config_speaks_of_are_refused(tmp_path: Path, dtype: torch.dtype):
    write(tmp_path / "model", None, lambda w: ({"weight": (w * 10).to(dtype)}, w))
    message = refused(tmp_path / "model")
    assert "its tensors hold codes, model.layers.0.mlp.down_proj.weight (" in message
    assert "has no quantization_config" in message


def test_codes_without_a_scale_and_scales_without_codes_are_refused(tmp_path: Path):
    said = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    for i, parts in enumerate(({"weight": torch.float8_e4m3fn}, {"weight": torch.float32, "weight_scale_inv": None})):
        folder = tmp_path / str(i) / "model"

        def code(w: Tensor, parts: dict[str, Any] = parts) -> Coded:
            return {end: torch.ones(2, 2) if dtype is None else w.to(dtype) for end, dtype in parts.items()}, w

        write(folder, said, code)
        assert ("has 0 scales, not one", "is the scale of a weight that is stored as F32")[i] in refused(folder)


def test_a_scale_of_another_shape_is_refused(tmp_path: Path):
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    write(tmp_path / "model", said, lambda w: in_blocks(w, 32, 32))
    assert "in blocks of [16, 16]" in refused(tmp_path / "model")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"quantization_status": "frozen"}, "quantization_status is 'frozen'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
    ],
)
def test_what_compressed_tensors_cannot_decompress_is_refused(tmp_path: Path, extra: dict, expected: str):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES["pack-quantized"]))
    said = compressed_tensors.quantization_config({"a": Weights(4)}, ["lm_head"]) | extra
    write(tmp_path / "model", said, compressed(scheme, "pack-quantized"))
    assert expected in refused(tmp_path / "model")


def test_an_order_of_the_groups_is_refused(tmp_path: Path):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES["pack-quantized"]))
    said = compressed_tensors.quantization_config({"a": Weights(4)}, ["lm_head"])
    inner = compressed(scheme, "pack-quantized")
    write(tmp_path / "model", said, lambda w: (inner(w)[0] | {"weight_g_idx": torch.arange(w.shape[1])}, w))
    assert "weight_g_idx" in refused(tmp_path / "model")
