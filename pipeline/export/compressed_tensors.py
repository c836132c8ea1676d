"""compressed-tensors' pack-quantized layout: what transformers, vLLM and llm-compressor load.

Each quantized linear becomes weight_packed (int32 [out, ceil(in * bits / 32)], code + 2^(bits-1), low bits first),
weight_scale (float16 [out, 1]) and weight_shape (int64 [2]). Embeddings, norms and the head stay in float16. The format
has no place for static activation scales beside packed weights, so those lie beside it in activation_scales.json.
"""

from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from pipeline.quant.grid import SCALE_DTYPE
from pipeline.quant.model import QuantizedModel

WEIGHTS = "model.safetensors"


def write(quantized: QuantizedModel, teacher: str | Path, ignored: list[str], out: Path) -> None:
    """Write config and weights of a quantized model; `ignored` are the linears that stay in float."""
    tensors: dict[str, Tensor] = dict(quantized.floats)
    for name, codes in quantized.codes.items():
        tensors[f"{name}.weight_packed"] = pack_to_int32(codes, quantized.weight_bits)
        tensors[f"{name}.weight_scale"] = quantized.scales[name].to(SCALE_DTYPE)
        tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape)
    save_file(
        {name: t.contiguous() for name, t in sorted(tensors.items())},
        out / WEIGHTS,
        metadata={"format": "pt"},
    )
    config = AutoConfig.from_pretrained(teacher, local_files_only=True)
    config.dtype = torch.float16
    config.quantization_config = quantization_config(quantized.weight_bits, ignored)
    config.save_pretrained(out)


def quantization_config(bits: int, ignored: list[str]) -> dict[str, Any]:
    """What config.json says of the quantization."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
    }


def read(folder: Path, bits: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Codes (int8 [out, in]) and scales (float32 [out, 1]) of each quantized linear, unpacked from the file."""
    tensors = load_file(folder / WEIGHTS)
    codes, scales = {}, {}
    for key, packed in tensors.items():
        if key.endswith(".weight_packed"):
            name = key.removesuffix(".weight_packed")
            shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
            codes[name] = unpack_from_int32(packed, bits, shape)
            scales[name] = tensors[f"{name}.weight_scale"].float()
    return codes, scales
