"""A linear's input on the scheme's grid, as XNNPACK's kernels for INT8 inputs take it.

Such a kernel quantizes each row of its input anew: 256 numbers between the row's least and greatest value, zero among
them. Two more inputs, whose weights are 0, tell it which numbers: with -zero * scale and (255 - zero) * scale in a row,
its scale is `scale` and its zero point is `zero`, for any row that lies between. A grid of 16 bits is two of 8, the
high and the low half of each code, and so is an input in float: a row's own grid of 8 bits, and a finer one for what
that leaves over. Their products with the weight are added up.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Grid, Step

ENDS = 2  # inputs that tell the kernel its range
LEVELS = 255  # steps from the least to the greatest number of 8 bits
MIDDLE = 128  # zero point of a symmetric grid
LEAST = 2.0**-100  # of a scale
WHOLE = 1.5 * 2.0**23  # float32 has no fractions beside it: adding it rounds, half to even
HALF_STEP = 254  # numbers of the finer grid in a step of the coarser: what is left over is half of one, 127 of these


class Numbers(NamedTuple):
    """Scale and zero point of a static grid; that of a symmetric one is half its numbers."""

    scale: float
    zero: int


class Inputs(NamedTuple):
    """A linear's quantizer in plain numbers, as a traced graph needs them. step, outer: of static grids."""

    bits: int
    symmetric: bool
    step: Numbers | None = None
    outer: Numbers | None = None

    @property
    def is_kernels_own(self) -> bool:
        """Whether the kernel's grid is the scheme's: asymmetric, dynamic, of 8 bits. It needs no ends then."""
        return self.step is None and not self.symmetric and self.bits == 8


def inputs_of(quantizer: Quantizer | None) -> Inputs | None:
    """None for an input in float."""
    if quantizer is None:
        return None
    bits, symmetric = quantizer.scheme.bits, quantizer.scheme.symmetric

    def numbers(step: Step | None) -> Numbers | None:
        return None if step is None else Numbers(float(step.scale), 2 ** (bits - 1) if symmetric else int(step.zero))

    return Inputs(bits, symmetric, numbers(quantizer.step), numbers(quantizer.outer))


def parts(x: Tensor, inputs: Inputs | None) -> Tensor:
    """What is multiplied with a weight and added up.

    Args:
        x: float32 [1, tokens, in]. inputs: None for an input in float.

    Returns:
        float32 [parts, tokens, in + ENDS], or [1, tokens, in] where the grid is the kernel's own.
    """
    if inputs is None:
        return _in_float(x)
    if inputs.is_kernels_own:
        return x
    if inputs.step is None:
        return _by_token(x, Grid(inputs.bits, inputs.symmetric))
    held = _held(x, inputs.bits, inputs.step)
    rows = _static(held, inputs.bits, inputs.step)
    if inputs.outer is None:
        return rows
    beyond = _held(x - held, inputs.bits, inputs.outer)
    return torch.cat([rows, _static(beyond, inputs.bits, inputs.outer)])


def _in_float(x: Tensor) -> Tensor:
    """A grid of 8 bits for each row, and one of 8 for what is left over: some 15 bits in all."""
    scale = _above_zero(x.abs().amax(dim=-1, keepdim=True) / (MIDDLE - 1))
    high = (x / scale + WHOLE - WHOLE) * scale
    return torch.cat([_between(high, MIDDLE, scale), _between(x - high, MIDDLE, scale / HALF_STEP)])


def _by_token(x: Tensor, grid: Grid) -> Tensor:
    """A min-max grid for each row, as `Grid.step_of` makes it."""
    _, high = grid.range
    if grid.symmetric:
        return _between(x, MIDDLE, _above_zero(x.abs().amax(dim=-1, keepdim=True) / high))
    least, greatest = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
    scale = _above_zero((greatest - least) / high)
    zero = WHOLE - least / scale - WHOLE
    held = torch.minimum(torch.maximum(x, -zero * scale), (high - zero) * scale)
    return _between(held, zero, scale)


def _held(x: Tensor, bits: int, step: Numbers) -> Tensor:
    """x within a static grid's range."""
    return x.clamp(-step.zero * step.scale, (2**bits - 1 - step.zero) * step.scale)


def _static(held: Tensor, bits: int, step: Numbers) -> Tensor:
    """Values within a static grid's range: float32 [parts, tokens, in + ENDS]."""
    scale, zero = step
    if bits <= 8:
        return _between(held, zero, scale)
    codes = held * (1 / scale) + WHOLE - (WHOLE - zero)
    high = (codes * (1 / 256)).floor()
    coarse = _between((high - zero // 256) * (256 * scale), zero // 256, 256 * scale)
    return torch.cat([coarse, _between((codes - 256 * high - zero % 256) * scale, zero % 256, scale)])


def _between(values: Tensor, zero: int | Tensor, scale: float | Tensor) -> Tensor:
    """Values with the ends of the kernel's range behind them: float32 [1, tokens, in + ENDS]."""
    least, greatest = -zero * scale, (LEVELS - zero) * scale
    if isinstance(least, Tensor) and isinstance(greatest, Tensor):
        return torch.cat([values, least, greatest], dim=-1)
    return F.pad(F.pad(values, (0, 1), value=float(least)), (0, 1), value=float(greatest))


def _above_zero(scale: Tensor) -> Tensor:
    """Of a row of zeros, any scale will do."""
    return scale.clamp(min=LEAST)
