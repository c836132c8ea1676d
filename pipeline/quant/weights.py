"""Weights [out, in] on their scheme's grid: one scale an output channel, or one a group of its input channels.

Scales and zero points are float32 [out, n], n the number of groups; n divides the input width.
"""

import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant.grid import Grid, Step, grouped


def grid_of(scheme: Weights) -> Grid:
    """The scheme's grid."""
    return Grid(scheme.bits, scheme.symmetric)


def weight_step(weight: Tensor, scheme: Weights, dtype: torch.dtype | None = None) -> Step:
    """Min-max scale and zero point of each output channel or group: [out, n].

    dtype: of the scales; None: the smallest that holds them, see `Grid.scale_dtype`.
    """
    grid = grid_of(scheme)
    least, greatest = grouped(weight, scheme.group).aminmax(dim=-1, keepdim=True)
    scale, zero = grid.step(least, greatest, dtype or grid.scale_dtype(least, greatest))
    return Step(scale.squeeze(-1), zero.squeeze(-1))


def quantize(weight: Tensor, step: Step, scheme: Weights) -> Tensor:
    """Codes of a weight, as float32 [out, in]."""
    return grid_of(scheme).quantize(_groups(weight, step), _wide(step)).flatten(1)


def dequantize(codes: Tensor, step: Step, scheme: Weights) -> Tensor:
    """The weight that codes stand for: float32 [out, in]."""
    return grid_of(scheme).dequantize(_groups(codes, step), _wide(step)).flatten(1)


def add_zero(levels: Tensor, step: Step) -> Tensor:
    """Codes, of what they stand for in units of their scales: float32 [out, in] both."""
    return _groups(levels, step).add(step.zero[..., None]).flatten(1)


def quantize_and_tell(weight: Tensor, step: Step, scheme: Weights) -> tuple[Tensor, Tensor | None]:
    """`quantize`, and which values the grid does not clip: bool [out, in]; None where it clips none."""
    codes, inside = grid_of(scheme).quantize_and_tell(_groups(weight, step), _wide(step))
    return codes.flatten(1), None if inside is None else inside.flatten(1)


def quotient(weight: Tensor, step: Step) -> Tensor:
    """A weight in units of its scales: float32 [out, in]."""
    return _groups(weight, step).div(step.scale[..., None]).flatten(1)


def clamp(weight: Tensor, step: Step, scheme: Weights) -> Tensor:
    """A weight held within the range of its grid: float32 [out, in]."""
    low, high = grid_of(scheme).range
    ends = [(bound - step.zero) * step.scale for bound in (low, high)]
    least, greatest = torch.minimum(*ends), torch.maximum(*ends)  # a negative scale turns them over
    return _groups(weight, step).clamp(least[..., None], greatest[..., None]).flatten(1)


def _groups(x: Tensor, step: Step) -> Tensor:
    return grouped(x, x.shape[-1] // step.scale.shape[-1])


def _wide(step: Step) -> Step:
    return Step(step.scale[..., None], step.zero[..., None])
