"""From the packed integers of GPTQ, auto-round and bitsandbytes to the float32 weights that they stand for.

Readers as those of codes.py; their libraries need a GPU or a compiler, or are far larger than what they do here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from torch import Tensor

from pipeline.models.codes import Read, Tensors, awq

STEPS = 127.0  # of bitsandbytes' INT8, each side of zero
STATE = "quant_state.bitsandbytes__"  # begins the name of what bitsandbytes says of a weight in 4 bits


def gptq(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """The layout of AutoGPTQ and GPTQModel; weight[o, i] = (code[o, i] - zero[o, g]) x scale[o, g], g the group of i.

    Codes are packed along the inputs, zeros along the outputs, and in the first format (`checkpoint_format: gptq`) one
    is taken from each zero before it is packed.

    Raises:
        ValueError: the layout is one for a kernel (marlin, bitblas, ...), or a tensor is not packed as it should be.
    """
    layout = str(said.get("checkpoint_format") or said.get("format") or "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise ValueError(f"GPTQ in the layout {layout!r} cannot be dequantized here, gptq and gptq_v2 can")

    def read(name: str) -> tuple[str, Tensor] | None:
        module, _, part = name.rpartition(".")
        if part in ("qzeros", "scales", "g_idx") and "qweight" in tensors.within(module):
            return None
        if part != "qweight":
            return name, tensors[name]
        words, scale = tensors[name], tensors[f"{module}.scales"].float().T  # (words, out), (out, groups)
        indexed = "g_idx" in tensors.within(module)
        bits = 32 * len(words) // len(tensors[f"{module}.g_idx"]) if indexed else int(said.get("bits", 4))
        if bits not in (2, 3, 4, 8) or words.dtype != torch.int32:
            raise ValueError(f"{name} [{len(words)}, ...] of {tensors.dtype(name)} does not hold codes of {bits} bits")
        if bits == 3 and layout == "gptq":
            raise ValueError(f"{name} has 3 bits in the layout 'gptq', in which libraries do not agree on the zeros")
        codes = unpacked(words.T, bits).float()  # (out, in)
        inputs = torch.arange(codes.shape[1])
        group = tensors[f"{module}.g_idx"].long() if indexed else inputs // (len(inputs) // scale.shape[1])
        if int(group.min()) < 0 or int(group.max()) >= scale.shape[1]:
            raise ValueError(f"{module}.g_idx names groups that are not among its {scale.shape[1]}")
        packed = tensors[f"{module}.qzeros"]  # (groups, words)
        zero = unpacked(_one_more(packed, bits) if layout == "gptq" else packed, bits).float().T  # (out, groups)
        return f"{module}.weight", (codes - zero[: len(scale), group]) * scale[:, group]

    return read


def auto_round(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """auto-round's checkpoints, which are packed as GPTQ's or AWQ's.

    Raises:
        ValueError: they are packed otherwise.
    """
    layout = str(said.get("packing_format") or "none")
    readers = {"auto_round:auto_gptq": gptq, "auto_round:auto_awq": awq}
    if layout not in readers:
        raise ValueError(f"auto-round's packing_format {layout!r} cannot be dequantized here, {', '.join(readers)} can")
    return readers[layout](tensors, {"bits": said.get("bits", 4)}, folder)


def bitsandbytes(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """bitsandbytes' NF4 and FP4, a table's value x a block's absmax, and INT8, code x SCB / 127, SCB a row's absmax."""

    def read(name: str) -> tuple[str, Tensor] | None:
        module, _, part = name.rpartition(".")
        if part in ("SCB", "weight_format") and "SCB" in tensors.within(module):
            return None
        if module.endswith(".weight") or module.rpartition(".")[0].endswith(".weight"):
            return None  # of a weight in 4 bits: x.weight.absmax, x.weight.quant_state.bitsandbytes__nf4
        if "SCB" in tensors.within(module) and part == "weight":
            return name, tensors[name].float() * (tensors[f"{module}.SCB"].float() / STEPS)[:, None]
        kinds = [kind for kind in ("nf4", "fp4") if f"{name}.{STATE}{kind}" in tensors]
        if not kinds:
            return name, tensors[name]
        return name, _of_table(tensors, name, json.loads(bytes(tensors[f"{name}.{STATE}{kinds[0]}"].tolist())))

    return read


def _of_table(tensors: Tensors, name: str, state: Mapping[str, Any]) -> Tensor:
    """The weight of codes in 4 bits, the first of two in a byte's upper half, whose absmax may be codes themselves."""
    packed = tensors[name].flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()
    absmax = tensors[f"{name}.absmax"]
    if f"{name}.nested_absmax" in tensors:
        outer = tensors[f"{name}.nested_absmax"].repeat_interleave(int(state["nested_blocksize"]))[: absmax.numel()]
        absmax = tensors[f"{name}.nested_quant_map"][absmax.long()] * outer + float(state["nested_offset"])
    scale = absmax.float().repeat_interleave(int(state["blocksize"]))
    shape = torch.Size(state["shape"])
    return (tensors[f"{name}.quant_map"].float()[codes] * scale[: codes.numel()])[: shape.numel()].reshape(shape)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes that lie one after another in words, the first in the lowest bits, one perhaps across two words.

    Args:
        words: int32 [rows, words].

    Returns:
        int16 [rows, 32 words / bits].
    """
    shape = torch.Size((len(words), 32 * words.shape[1] // bits))
    return unpack_from_int32(words, bits, shape).short() + 2 ** (bits - 1)  # which gives them about zero


def _one_more(words: Tensor, bits: int) -> Tensor:
    """One added to each code of whole words: what was borrowed from a neighbour when one was taken goes back."""
    total = (words.long() + sum(1 << at for at in range(0, 32, bits))) & 0xFFFFFFFF
    return torch.where(total >= 2**31, total - 2**32, total).int()
