"""compressed-tensors' layouts: what transformers, vLLM and llm-compressor load.

Each quantized linear is pack-quantized: weight_packed (int32, code + 2^(bits-1), low bits first, 32 codes in as many
words as bits), weight_scale ([out, groups], float16, or float32 where that does not hold them) and weight_shape (int64
[2]). A quantized embedding is int-quantized, a byte a code however many bits it has, and weight_scale: transformers
does not load a packed one, as it asks each embedding for its weight (5.23). A head that shares it has its scales once
more, since each module has its own. Buffers that a quantized module makes itself, as Gemma's embedding its factor, are
stored, too: compressed-tensors takes them for parameters.

Norms and whatever else is not quantized stay in the dtype that the quantized model has them in, buffers in their own.
Whoever loads the file in float32 has codes times scales exactly, whatever the scales' dtype. Symmetric grids only: the
format has packed zero points, but transformers does not read them back. How inputs and KV cache are quantized lies in a
file of its own: the format's places for them hold one static grid, or dynamic ones with another scale than ours, and
vLLM refuses 4-bit weights with static inputs (docs/devices.md).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.export.proof import others
from pipeline.knobs.scheme import Weights
from pipeline.models import layout
from pipeline.quant.grid import stored_dtype
from pipeline.quant.model import QuantizedModel

WEIGHTS = "model.safetensors"
PACKED, BY_BYTE = "pack-quantized", "int-quantized"  # layouts


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path) -> None:
    """Write config and weights of a quantized model.

    Args:
        model: the float model, which gives the config.

    Raises:
        ValueError: weights are asymmetric.
    """
    asymmetric = [name for name, scheme in quantized.schemes.items() if not scheme.symmetric]
    if asymmetric:
        raise ValueError(
            f"compressed-tensors holds no asymmetric weights, as {asymmetric[:8]} are; take another of export.formats, "
            "onnx, mlx or dequantized"
        )
    quantized.untie(model)
    embedding, sharing = _embedding(model, quantized)
    tensors: dict[str, Tensor] = dict(quantized.floats)
    for name, codes in quantized.codes.items():
        scale = quantized.steps[name].scale.to(stored_dtype(quantized.steps[name].scale))
        buffers = model.get_submodule(name).named_buffers(prefix=name, recurse=False)
        tensors |= {key: buffer.clone() for key, buffer in buffers}
        if name == embedding:
            tensors[f"{name}.weight"] = codes
            tensors |= {f"{module}.weight_scale": scale.clone() for module in (name, *sharing)}
        else:
            tensors[f"{name}.weight_packed"] = pack_to_int32(codes, quantized.schemes[name].bits)
            tensors[f"{name}.weight_scale"] = scale
            tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape)
    save_file(
        {name: t.contiguous() for name, t in sorted(tensors.items())},
        out / WEIGHTS,
        metadata={"format": "pt"},
    )
    config = copy.deepcopy(model.config)
    config.dtype = torch.float16
    packed = {name: scheme for name, scheme in quantized.schemes.items() if name != embedding}
    by_byte = dict.fromkeys((embedding, *sharing), quantized.schemes[embedding]) if embedding else {}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    ignored = [name for name in linears if name not in {*quantized.codes, *sharing}]
    config.quantization_config = quantization_config(packed, ignored, by_byte)
    config.save_pretrained(out)


def _embedding(model: PreTrainedModel, quantized: QuantizedModel) -> tuple[str, list[str]]:
    """The embedding's module, where it is quantized, and the head's where that reads the same weight."""
    embedding, head = layout.embedding(model), layout.head(model)
    if embedding is None or embedding.name not in quantized.codes:
        return "", []
    return embedding.name, [head.name] if head is not None and layout.tied(model) else []


def quantization_config(
    packed: dict[str, Weights], ignored: list[str], by_byte: dict[str, Weights] | None = None
) -> dict[str, Any]:
    """What config.json says of the quantization: a group of modules for each scheme and layout that there is.

    Args:
        packed, by_byte: the scheme of each module that is stored so.
    """
    formats = {PACKED: packed, BY_BYTE: by_byte or {}}
    used = [
        (layout_name, scheme) for layout_name, schemes in formats.items() for scheme in dict.fromkeys(schemes.values())
    ]
    shared = len(by_byte or {}) > 1  # a head with the embedding's weight is a linear, too
    groups = {}
    for i, (layout_name, scheme) in enumerate(used):
        mine = [name for name, other in formats[layout_name].items() if other == scheme]
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if scheme.group else "channel",
            "group_size": scheme.group or None,
            "dynamic": False,
        }
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(mine) == len(packed) and layout_name == PACKED and not shared else mine,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": layout_name,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": PACKED if len(dict(used)) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": groups,
    }


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Raises:
    ValueError: codes or scales in the file are not the quantized model's, bit for bit; names the linears.
    """
    tensors = load_file(folder / WEIGHTS)
    stored = {key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")}
    stored |= {key.removesuffix(".weight") for key, values in tensors.items() if values.dtype == torch.int8}
    if stored != quantized.codes.keys():
        raise ValueError(f"the export holds other weights: {sorted(stored ^ quantized.codes.keys())[:8]}")
    wrong = {}
    for name, codes in quantized.codes.items():
        if f"{name}.weight" in tensors:
            theirs = tensors[f"{name}.weight"]
        else:
            shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
            theirs = unpack_from_int32(tensors[f"{name}.weight_packed"], quantized.schemes[name].bits, shape)
        same_scale = torch.equal(tensors[f"{name}.weight_scale"].float(), quantized.steps[name].scale)
        if not torch.equal(theirs, codes) or not same_scale:
            wrong[name] = theirs, codes
    if wrong:
        raise ValueError(f"codes or scales read back from the export differ in {len(wrong)} weights: {others(wrong)}")
