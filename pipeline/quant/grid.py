"""The one function that quantizes: training, calibration, export and tests all call it.

Uniform integer grids of b bits. Symmetric: codes [-2^(b-1), 2^(b-1) - 1], zero at 0. Asymmetric: codes [0, 2^b - 1] and
an integer zero point. Rounding is half to even. A scale is rounded to the dtype that the export stores before it is
used, so that the fake-quantized weight and the packed file hold the same numbers: float16, or float32 for a weight
whose scales leave float16's range.

Values that share a scale lie along the last dimension: all of it, or groups of it (`grouped`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SCALE_DTYPE = torch.float16
WIDE_SCALE_DTYPE = torch.float32  # of a weight whose scales float16 does not hold
SCALE_ERROR = 2.0**-8  # what rounding may move a weight's scales by, as a share of them: 0.2 dB of SQNR at most


class Step(NamedTuple):
    """Scale and zero point: float32 both, the latter whole numbers; they broadcast against what they quantize."""

    scale: Tensor
    zero: Tensor


@dataclass(frozen=True)
class Grid:
    """A uniform grid of `bits` (2 to 16)."""

    bits: int
    symmetric: bool = True

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest code."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)

    def levels(self, step: Step) -> tuple[Tensor, Tensor]:
        """Least and greatest code less the zero point: what a value on the grid is at most, in units of its scale."""
        low, high = self.range
        return low - step.zero, high - step.zero

    def step(self, least: Tensor, greatest: Tensor, dtype: torch.dtype = SCALE_DTYPE) -> Step:
        """Min-max step without clipping of values in [least, greatest].

        Symmetric: absmax / (2^(b-1) - 1), alpha of LLM-QAT (2305.17888), eq. 1. Asymmetric: (greatest - least) /
        (2^b - 1) over the range widened to hold 0, its zero point round(-least / scale).

        Args:
            least, greatest: of the values that share a scale; any shape.
            dtype: what the scale is rounded to before use.

        Returns:
            Step of the same shape, each scale exactly representable in `dtype`. All-zero groups have scale 1; a scale
            that falls below the least number of `dtype` (see `stored_scale`) is that number.

        Raises:
            ValueError: a scale exceeds the range of `dtype`.
        """
        least, greatest = least.float().clamp(max=0), greatest.float().clamp(min=0)
        low, high = self.range
        width = self._width(least, greatest)
        scale = stored_scale(width, dtype)
        if bool(scale.isinf().any()):
            raise ValueError(f"values up to {float(width.amax() * high):.3g} need a scale beyond the range of {dtype}")
        scale = torch.where((least == 0) & (greatest == 0), torch.ones_like(scale), scale)
        zero = torch.zeros_like(scale) if self.symmetric else (-least / scale).round().clamp(low, high)
        return Step(scale, zero)

    def step_of(self, x: Tensor, dtype: torch.dtype = SCALE_DTYPE) -> Step:
        """Min-max step over the last dimension, which is kept with size 1."""
        least, greatest = x.aminmax(dim=-1, keepdim=True)
        return self.step(least, greatest, dtype)

    def scale_dtype(self, least: Tensor, greatest: Tensor) -> torch.dtype:
        """In what the scales of a weight are stored: float16, or float32 where float16's range is too small for them.

        That is where one of them exceeds it, or where rounding moves them by more than SCALE_ERROR, as it does below
        some 2^-18, where float16's numbers are 2^-24 apart. Large scales count for more, as their errors do; so a few
        outputs that are next to nothing do not widen the others' scales.

        Args:
            least, greatest: of the values that share a scale, of the whole weight; any shape.
        """
        width = self._width(least.float().clamp(max=0), greatest.float().clamp(min=0)).double()
        error = stored_scale(width.float(), SCALE_DTYPE).double().sub(width).where(width > 0, 0)
        fits = bool(error.square().sum() <= SCALE_ERROR**2 * width.square().sum())  # not where one is infinite
        return SCALE_DTYPE if fits else WIDE_SCALE_DTYPE

    def _width(self, least: Tensor, greatest: Tensor) -> Tensor:
        """The exact scale of values in a range that holds 0."""
        low, high = self.range
        return torch.maximum(-least, greatest) / high if self.symmetric else (greatest - least) / (high - low)

    def quantize(self, x: Tensor, step: Step) -> Tensor:
        """Codes clamp(round(x / scale) + zero), as float32 of x's shape."""
        return self._rounded(x, step).clamp_(*self.range)

    def quantize_and_tell(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """`quantize`, and which values are not clipped: bool of x's shape; None where none is clipped."""
        codes, (low, high) = self._rounded(x, step), self.range
        if not codes.numel():
            return codes, None
        if codes.device.type == "cpu":  # elsewhere, asking would wait for the device
            least, most = codes.aminmax()
            if least >= low and most <= high:
                return codes, None
        inside = (codes >= low) & (codes <= high)
        return codes.clamp_(low, high), inside

    def _rounded(self, x: Tensor, step: Step) -> Tensor:
        codes = torch.div(x, step.scale).round_()
        return codes if self.symmetric else codes.add_(step.zero)

    def dequantize(self, codes: Tensor, step: Step) -> Tensor:
        """(codes - zero) * scale in float32."""
        codes = codes.float()
        return (codes if self.symmetric else codes - step.zero) * step.scale

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that codes are kept in (8 bits and fewer)."""
        return torch.int8 if self.symmetric else torch.uint8


def grouped(x: Tensor, group: int) -> Tensor:
    """A view [..., n, group] of x [..., n * group]; group 0: [..., 1, width]."""
    return x.unflatten(-1, (-1, group or x.shape[-1]))


def stored_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale as `dtype` stores it, as float32: rounded to nearest, and above zero.

    Of float16 the subnormal numbers are used, too, which in float32 are like any other. They are multiples of 2^-24, so
    far apart that a scale rounded down would clip: there it is rounded up.
    """
    least = torch.finfo(dtype).tiny
    stored = scale.to(dtype).float()
    if dtype != torch.float16:
        return stored.clamp(min=least)
    return torch.where(scale < least, (scale * 2.0**24).ceil().clamp(min=1) * 2.0**-24, stored)


def stored_dtype(scale: Tensor) -> torch.dtype:
    """The smallest dtype that holds these scales exactly: float16 or float32."""
    return SCALE_DTYPE if torch.equal(scale.to(SCALE_DTYPE).float(), scale.float()) else WIDE_SCALE_DTYPE


def sqnr(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise ratio in dB, 10 log10(sum r^2 / sum (r - a)^2); 200 where the two are equal."""
    noise = (reference.double() - approximation.double()).square().sum()
    signal = reference.double().square().sum()
    if noise == 0 or signal == 0:
        return 200.0 if noise == 0 else -200.0
    return float(10 * torch.log10(signal / noise).clamp(-20, 20))
