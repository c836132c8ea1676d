"""The one function that quantizes: training, calibration, export and tests all call it.

Signed uniform grids of b bits, [-2^(b-1), 2^(b-1) - 1], rounding half to even. A scale is rounded to the dtype that the
export stores before it is used, so that the fake-quantized weight and the packed file hold the same numbers.
"""

import torch
from torch import Tensor

SCALE_DTYPE = torch.float16


def grid_range(bits: int) -> tuple[int, int]:
    """Least and greatest code of a signed grid."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def scale_from_absmax(absmax: Tensor, bits: int, dtype: torch.dtype = SCALE_DTYPE) -> Tensor:
    """Scale of the symmetric min-max grid without clipping, absmax / (2^(b-1) - 1): alpha of LLM-QAT, eq. 1.

    Args:
        absmax: greatest magnitude of each group of values that share a scale; any shape, non-negative.
        bits: 2 to 16.
        dtype: what the scale is rounded to before use.

    Returns:
        float32 of the same shape, each exactly representable in `dtype`. All-zero groups have scale 1; where it
        would vanish in `dtype` it is the least normal number of it.
    """
    scale = (absmax.float() / grid_range(bits)[1]).to(dtype).float()
    scale = scale.clamp(min=torch.finfo(dtype).tiny)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def channel_scale(weight: Tensor, bits: int) -> Tensor:
    """Min-max scale of each output channel of a weight [out, in]: float32 [out, 1]."""
    return scale_from_absmax(weight.abs().amax(dim=1, keepdim=True), bits)


def quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes clamp(round(x / scale)), as float32 of x's shape; `scale` broadcasts against x."""
    return torch.div(x, scale).round_().clamp_(*grid_range(bits))


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """codes * scale in float32."""
    return codes.float() * scale


def sqnr(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise ratio in dB, 10 log10(sum r^2 / sum (r - a)^2); 200 where the two are equal."""
    noise = (reference.double() - approximation.double()).square().sum()
    signal = reference.double().square().sum()
    if noise == 0 or signal == 0:
        return 200.0 if noise == 0 else -200.0
    return float(10 * torch.log10(signal / noise).clamp(-20, 20))
