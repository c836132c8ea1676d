"""Post-training quantization of one weight: round to nearest, and GPTQ.

A method takes a weight [out, in] and the Hessian of its layer's squared output error, H = X^T X over the inputs X
[tokens, in], and gives codes and scales. It also gives the latent weight, the float numbers that round to those codes,
where quantization-aware training starts from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.quant.grid import channel_scale, dequantize, grid_range, quantize


@dataclass(frozen=True)
class Rounded:
    """A quantized weight: codes int8 [out, in], scale float32 [out, 1], latent float32 [out, in], GPTQ's damping."""

    codes: Tensor
    scale: Tensor
    latent: Tensor
    damping: float = 0.0

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for: float32 [out, in]."""
        return dequantize(self.codes, self.scale)


def rtn(weight: Tensor, hessian: Tensor | None, bits: int, **_: object) -> Rounded:
    """Round to nearest on the symmetric min-max grid; the Hessian is not used."""
    scale = channel_scale(weight, bits)
    return Rounded(quantize(weight, scale, bits).to(torch.int8), scale, weight)


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    damping: float = 0.01,
    block: int = 128,
    act_order: bool = True,
) -> Rounded:
    """Round column by column, each column's error spread over those still to come (Frantar et al., 2210.17323, alg. 1).

    Args:
        weight: float32 [out, in].
        hessian: float32 [in, in], X^T X up to a factor.
        bits: of the grid; its scales are those of `rtn`.
        damping: share of the mean diagonal that is added to the diagonal; raised tenfold until the Hessian inverts.
        block: columns whose error is fed back at once; changes speed, and the result only by rounding.
        act_order: take the columns in falling order of the Hessian's diagonal.

    Returns:
        Codes and scales in the weight's own column order. The latent weight is what each column had become when it was
        rounded, held inside the grid's range.

    Raises:
        ValueError: the Hessian does not invert even with damping 1, as when it is not finite.
    """
    scale = channel_scale(weight, bits)
    order = (
        torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(weight.shape[1])
    )
    upper, used = _inverse_factor(hessian[order][:, order], damping)
    left = weight.T[order].contiguous()  # (in, out): a column of the weight is a row here
    codes, latent = torch.empty_like(left), torch.empty_like(left)
    low, high = grid_range(bits)
    step = scale.squeeze(1)
    for start in range(0, len(left), block):
        end = min(start + block, len(left))
        errors = torch.empty(end - start, left.shape[1])
        for i in range(start, end):
            codes[i] = quantize(left[i], step, bits)
            latent[i] = left[i].clamp(low * step, high * step)
            errors[i - start] = (left[i] - codes[i] * step) / upper[i, i]
            left[i + 1 : end].addr_(upper[i, i + 1 : end], errors[i - start], alpha=-1)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    back = torch.argsort(order)
    return Rounded(codes[back].T.contiguous().to(torch.int8), scale, latent[back].T.contiguous(), used)


def _inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the damped Hessian's inverse, and the damping that it took."""
    mean = hessian.diagonal().mean().clamp(min=1e-12)
    while damping <= 1.0:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper, damping
        damping *= 10
    raise ValueError("the Hessian does not invert even with damping 1; are the calibration activations finite?")


def output_sqnr(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """SQNR in dB of a linear's output on the inputs behind the Hessian: tr(W H W^T) / tr(E H E^T) with E = W - W'."""
    error = weight - approximation
    signal = ((weight @ hessian) * weight).sum().double()
    noise = ((error @ hessian) * error).sum().double()
    return 200.0 if noise <= 0 else float(10 * torch.log10(signal / noise).clamp(-20, 20))


PTQ_METHODS: dict[str, Callable[..., Rounded]] = {"rtn": rtn, "gptq": gptq}
