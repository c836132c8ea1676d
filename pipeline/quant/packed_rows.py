"""Rows of groups on an integer grid, stored as a cache stores them: packed codes, scales and zero points.

Codes are stored less the grid's least one, so from 0. Those of 2 bits lie four a byte, of 3 and 4 two, of 5 to 8 one;
rows begin at whole bytes. Scales are float16, as Grid rounds them; zero points are a byte each, and symmetric grids
have none.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.quant.grid import SCALE_DTYPE, Grid, Step


def stored_bits(bits: int) -> int:
    """Bits that a code of so many takes: the next power of two."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., ceil(n * bits / 8)] of codes uint8 [..., n] below 2^bits; bits: 2, 4 or 8. The first lies lowest."""
    share = 8 // bits
    parts = functional.pad(codes, (0, -codes.shape[-1] % share)).unflatten(-1, (-1, share))
    packed = parts[..., 0]
    for i in range(1, share):
        packed = packed | parts[..., i] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The codes again, uint8 [..., count]."""
    share = 8 // bits
    if share == 1:
        return packed
    codes = packed.new_empty(*packed.shape, share)
    for i in range(share):
        codes[..., i] = packed >> (bits * i) & (2**bits - 1)
    return codes.flatten(-2)[..., :count]


class PackedRows:
    """Rows [batch, rows, groups, size], a scale (and a zero point) a group, appended and dropped row by row."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.codes: Tensor | None = None  # uint8 [batch, rows, bytes]
        self.scales: Tensor | None = None  # float16 [batch, rows, groups]
        self.zeros: Tensor | None = None  # uint8 [batch, rows, groups]

    def append(self, rows: Tensor) -> None:
        """Quantize rows of floats, of any number, and store them behind the others."""
        rows = rows.float()
        self.size = rows.shape[3]
        step, least = self.grid.step_of(rows), self.grid.range[0]
        codes = (self.grid.quantize(rows, step) - least).to(torch.uint8).flatten(2)
        self.codes = _behind(self.codes, pack(codes, stored_bits(self.grid.bits)))
        self.scales = _behind(self.scales, step.scale.squeeze(-1).to(SCALE_DTYPE))
        if not self.grid.symmetric:
            self.zeros = _behind(self.zeros, step.zero.squeeze(-1).to(torch.uint8))

    def values(self) -> Tensor:
        """All rows as float32 [batch, rows, groups, size]; there is at least one."""
        assert self.codes is not None
        assert self.scales is not None
        count = self.scales.shape[2] * self.size
        codes = unpack(self.codes, stored_bits(self.grid.bits), count).unflatten(2, (-1, self.size))
        scale = self.scales.float()[..., None]
        zero = torch.zeros_like(scale) if self.zeros is None else self.zeros.float()[..., None]
        return self.grid.dequantize(codes.float().add_(self.grid.range[0]), Step(scale, zero))

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Put function(tensor) in the place of each tensor [batch, rows, ...]; what it leaves out is freed."""
        for name in ("codes", "scales", "zeros"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, function(tensor).clone())

    def tensors(self) -> Iterator[Tensor]:
        """All that is stored."""
        yield from (tensor for tensor in (self.codes, self.scales, self.zeros) if tensor is not None)


def _behind(before: Tensor | None, new: Tensor) -> Tensor:
    return new if before is None else torch.cat([before, new], dim=1)
