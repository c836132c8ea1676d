"""ggml's blocks of 32 weights, written from codes and scales: the numbers are the trained ones, not rounded again.

Of each block: its scale in float16, then codes. Q4_0 holds codes -8 to 7 in 4 bits, Q5_0 -16 to 15 in 5, Q8_0 a byte a
code. A scale of a row or of a group is repeated in each of its blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from pipeline.knobs.scheme import Weights

BLOCK = 32
Bytes = np.ndarray  # uint8 [rows, bytes of a row]


class Kind(NamedTuple):
    """A type of ggml that holds symmetric codes of so many bits and fewer, and how a block's codes are packed."""

    bits: int
    type: GGMLQuantizationType
    pack: Callable[[np.ndarray], np.ndarray]


def _halves(codes: np.ndarray) -> np.ndarray:
    """Low four bits of [..., 32] codes from 0 on: the first 16 in the low halves of 16 bytes, the rest in the high."""
    low = (codes & 0x0F).astype(np.uint8)
    return low[..., :16] | (low[..., 16:] << 4)


def _q4_0(codes: np.ndarray) -> np.ndarray:
    return _halves(codes + 8)


def _q5_0(codes: np.ndarray) -> np.ndarray:
    from_zero = codes + 16
    fifth = np.packbits((from_zero >> 4).astype(np.uint8), axis=-1, bitorder="little")
    return np.concatenate([fifth, _halves(from_zero)], axis=-1)


def _q8_0(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.int8).view(np.uint8)


KINDS = (
    Kind(4, GGMLQuantizationType.Q4_0, _q4_0),
    Kind(5, GGMLQuantizationType.Q5_0, _q5_0),
    Kind(8, GGMLQuantizationType.Q8_0, _q8_0),
)


def kind_of(bits: int) -> Kind:
    """The smallest kind that holds codes of so many bits."""
    return next(kind for kind in KINDS if bits <= kind.bits)


def problem(scheme: Weights, width: int) -> str:
    """Why blocks cannot hold a weight of this scheme and this many inputs, and what would fit; empty if they can."""
    if not scheme.symmetric:
        return "blocks have no zero points; take symmetric weights"
    if width % BLOCK:
        return f"{width} inputs are no multiple of {BLOCK}, the width of a block; leave it in float"
    if scheme.group % BLOCK:
        return f"a group of {scheme.group} is no multiple of {BLOCK}, the width of a block; take {BLOCK}, 64 or 128"
    return ""


def write(codes: Tensor, scale: Tensor, bits: int) -> tuple[Bytes, GGMLQuantizationType]:
    """The blocks of a weight.

    Args:
        codes: int8 [out, in]. scale: float32 [out, groups], each representable in float16.

    Raises:
        ValueError: float16 does not hold a scale.
    """
    kind = kind_of(bits)
    half = scale.to(torch.float16)
    if not torch.equal(half.float(), scale.float()):
        raise ValueError("a block's scale is float16, which does not hold this weight's scales")
    rows, width = codes.shape
    packed = kind.pack(codes.numpy().astype(np.int16).reshape(rows, width // BLOCK, BLOCK))
    repeated = half.repeat_interleave(width // BLOCK // scale.shape[1], dim=1).numpy()
    scales = np.ascontiguousarray(repeated)[..., None].view(np.uint8)
    return np.concatenate([scales, packed], axis=-1).reshape(rows, -1), kind.type
