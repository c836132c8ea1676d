"""A folder as mlx-lm loads it: for Macs, and for whatever else mlx runs on.

mlx holds a weight as scale * code + bias, codes from zero on, in groups of 32, 64 or 128 inputs: with a bias of -zero
point * scale that is our grid, a row's or a longer group's scale repeated. Codes are a stream of bits, the low ones
first, in words of 32, as in compressed-tensors. mlx computes in the dtype of the scales, float16 as a rule, and rounds
what the codes stand for once more.
"""

from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.artifacts.contract import write_json
from pipeline.export.mlx import grids
from pipeline.models import saved
from pipeline.quant.grid import Step, stored_dtype
from pipeline.quant.model import QuantizedModel

WEIGHTS = "model.safetensors"
SHOWN = 8  # tensors that are named


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path) -> None:
    """Write config, weights and the teacher's tokenizer.

    Args:
        model: the float model, which gives the config. teacher: its folder.
    """
    quantized.untie(model)
    tensors, modules = dict(quantized.floats), {}
    for name, codes in quantized.codes.items():
        scheme, step = quantized.schemes[name], quantized.steps[name]
        bits, group = grids.bits_of(scheme), grids.group_of(scheme, codes.shape[1])
        modules[name] = {"group_size": group, "bits": bits}
        scale, bias = _affine(step, scheme.symmetric, bits, codes.shape[1] // group)
        from_zero = codes if scheme.symmetric else codes.to(torch.int16).sub(2 ** (bits - 1)).to(torch.int8)
        tensors[f"{name}.weight"] = pack_to_int32(from_zero, bits).view(torch.uint32)
        tensors |= {f"{name}.scales": scale, f"{name}.biases": bias}
    metadata = {"format": "mlx"}
    save_file({name: t.contiguous() for name, t in sorted(tensors.items())}, out / WEIGHTS, metadata=metadata)
    write_json(out / "config.json", config(model.config, modules))
    model.generation_config.save_pretrained(out)
    saved.load_tokenizer(teacher).save_pretrained(out)


def _affine(step: Step, symmetric: bool, bits: int, groups: int) -> tuple[Tensor, Tensor]:
    """Scales and biases [out, groups], in the dtype that holds the scales."""
    scale = step.scale.repeat_interleave(groups // step.scale.shape[1], dim=1)
    zero = torch.full_like(step.zero, 2.0 ** (bits - 1)) if symmetric else step.zero
    bias = -zero.repeat_interleave(groups // zero.shape[1], dim=1) * scale
    dtype = stored_dtype(torch.cat([scale, bias]))
    return scale.to(dtype), bias.to(dtype)


def config(plain: PreTrainedConfig, modules: dict[str, dict[str, int]]) -> dict[str, Any]:
    """config.json: each module's group and bits, and what mlx-lm looks for elsewhere than transformers puts it."""
    rope = dict(getattr(plain, "rope_parameters", None) or {})
    first = next(iter(modules.values()), {"group_size": grids.GROUPS[0], "bits": 4})
    fields = plain.to_dict()
    fields.pop("_name_or_path", None)  # where the teacher lies on this machine
    return {
        **fields,
        "rope_theta": rope.pop("rope_theta", 10000.0),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "quantization": {**first, **modules},
    }


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Compare codes, scales, biases and float tensors with the quantized model's.

    Raises:
        ValueError: tensors are missing, foreign, or not those that were quantized, bit for bit; names them.
    """
    stored = load_file(folder / WEIGHTS)
    wrong = [name for name, values in quantized.floats.items() if not _same(stored.pop(name, None), values)]
    for name, codes in quantized.codes.items():
        scheme, step = quantized.schemes[name], quantized.steps[name]
        words, scale, bias = (stored.pop(f"{name}.{part}", None) for part in ("weight", "scales", "biases"))
        if words is None or scale is None or bias is None:
            wrong.append(name)
            continue
        bits = 32 * words.shape[1] // codes.shape[1]
        theirs = unpack_from_int32(words.view(torch.int32), bits, codes.shape).short()
        theirs += 0 if scheme.symmetric else 2 ** (bits - 1)
        affine = _affine(step, scheme.symmetric, bits, scale.shape[1])
        if not (torch.equal(theirs, codes.short()) and all(map(_same, (scale, bias), affine))):
            wrong.append(name)
    if wrong or stored:
        raise ValueError(
            f"tensors read back from {WEIGHTS} are not those that were written: {wrong[:SHOWN]}; foreign: "
            f"{sorted(stored)[:SHOWN]}"
        )


def _same(theirs: Tensor | None, ours: Tensor) -> bool:
    return theirs is not None and theirs.dtype == ours.dtype and torch.equal(theirs, ours)
