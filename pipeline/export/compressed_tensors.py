"""compressed-tensors' pack-quantized layout: what transformers, vLLM and llm-compressor load.

Each quantized linear becomes weight_packed (int32, code + 2^(bits-1), low bits first, 32 codes in as many words as
bits), weight_scale ([out, groups], float16, or float32 where that does not hold them) and weight_shape (int64 [2]).
Embeddings, norms and whatever else is not quantized stay in the dtype that the quantized model has them in, buffers in
their own. Whoever loads the file in float32 has codes times scales exactly, whatever the scales' dtype. Symmetric grids
only: the format has packed zero points, but transformers does not read them back. It has no place for activations
beside packed weights either, so how inputs and KV cache are quantized lies in a file of its own.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.knobs.scheme import Weights
from pipeline.quant.grid import stored_dtype
from pipeline.quant.model import QuantizedModel

WEIGHTS = "model.safetensors"


def write(quantized: QuantizedModel, model: PreTrainedModel, ignored: list[str], out: Path) -> None:
    """Write config and weights of a quantized model; `ignored` are the linears that stay in float.

    Args:
        model: the float model, which gives the config.

    Raises:
        ValueError: weights are asymmetric.
    """
    asymmetric = [name for name, scheme in quantized.schemes.items() if not scheme.symmetric]
    if asymmetric:
        raise ValueError(
            f"compressed-tensors holds no asymmetric weights, as {asymmetric[:8]} are; set export.format to dequantized"
        )
    tensors: dict[str, Tensor] = dict(quantized.floats)
    for name, codes in quantized.codes.items():
        scheme, step = quantized.schemes[name], quantized.steps[name]
        tensors[f"{name}.weight_packed"] = pack_to_int32(codes, scheme.bits)
        tensors[f"{name}.weight_scale"] = step.scale.to(stored_dtype(step.scale))
        tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape)
    save_file(
        {name: t.contiguous() for name, t in sorted(tensors.items())},
        out / WEIGHTS,
        metadata={"format": "pt"},
    )
    quantized.untie(model)
    config = copy.deepcopy(model.config)
    config.dtype = torch.float16
    config.quantization_config = quantization_config(quantized.schemes, ignored)
    config.save_pretrained(out)


def quantization_config(schemes: dict[str, Weights], ignored: list[str]) -> dict[str, Any]:
    """What config.json says of the quantization: a group of linears for each scheme that there is."""
    groups = {}
    for i, scheme in enumerate(dict.fromkeys(schemes.values())):
        mine = [name for name, other in schemes.items() if other == scheme]
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if scheme.group else "channel",
            "group_size": scheme.group or None,
            "dynamic": False,
        }
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(mine) == len(schemes) else mine,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": groups,
    }


def check(quantized: QuantizedModel, folder: Path) -> None:
    """Raises:
    ValueError: codes or scales in the file are not the quantized model's, bit for bit; names the linears.
    """
    tensors = load_file(folder / WEIGHTS)
    packed = {key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")}
    if packed != quantized.codes.keys():
        raise ValueError(f"the export holds other linears: {sorted(packed ^ quantized.codes.keys())[:8]}")
    wrong = []
    for name, codes in quantized.codes.items():
        shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
        theirs = unpack_from_int32(tensors[f"{name}.weight_packed"], quantized.schemes[name].bits, shape)
        same_scale = torch.equal(tensors[f"{name}.weight_scale"].float(), quantized.steps[name].scale)
        if not torch.equal(theirs, codes) or not same_scale:
            wrong.append(name)
    if wrong:
        raise ValueError(f"codes or scales read back from the export differ in {len(wrong)} linears: {wrong[:8]}")
