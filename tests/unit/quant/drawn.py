"""Grids and values that hypothesis draws."""

import torch
from torch import Tensor

from pipeline.quant.grid import Grid, Step
from tests.unit.quant.strategies import WEIGHT_BITS

BITS = [*WEIGHT_BITS, 10, 12, 16]


def fake_quantize(grid: Grid, x: Tensor, step: Step) -> Tensor:
    return grid.dequantize(grid.quantize(x, step), step)


def drawn_zeros(grid: Grid, seed: int, *shape: int) -> Tensor:
    """Zero points anywhere on an asymmetric grid."""
    if grid.symmetric:
        return torch.zeros(shape)
    return torch.randint(0, grid.range[1] + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
