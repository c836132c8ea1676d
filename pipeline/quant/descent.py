"""Coordinate descent on the codes and scales of a weight: what a rounding leaves of its output's error, made less.

GPTQ takes each column once, and knows no more of those after it than that they will make up for its error. Here every
code is taken again, with all others as they have become, and set to what is best for it (QuantEase, 2309.01885); before
each pass over the codes every scale is set to what is best for them (COMQ, 2403.07134). No step makes the error larger,
but for the rounding of scales to the dtype that stores them.
"""

import torch
from torch import Tensor

from pipeline.quant import weights
from pipeline.quant.grid import Step, stored_dtype
from pipeline.scheme import Weights


def descend(
    weight: Tensor, hessian: Tensor, codes: Tensor, step: Step, scheme: Weights, passes: int, block: int
) -> tuple[Tensor, Step, Tensor]:
    """Lessen tr(E H E^T), E the weight less what its codes stand for.

    Args:
        weight: float32 [out, in]. hessian: float32 [in, in], damped: every entry of its diagonal is above zero.
        codes: float32 [out, in], to start from. step: theirs, [out, n].
        passes: over all scales and codes. block: columns whose changes reach the others at once; changes speed alone.

    Returns:
        Codes float32 [out, in], their step, and what each code was rounded from, float32 [out, in].
    """
    grid, group, dtype = weights.grid_of(scheme), scheme.group or weight.shape[1], stored_dtype(step.scale)
    target, codes = weight.T.contiguous(), codes.T.contiguous()  # (in, out): a column of the weight is a row here
    scale, zero = (part.T.clone() for part in step)  # (n, out)
    latent, columns = target.clone(), len(target)
    for _ in range(passes):
        now = _values(codes, scale, zero, group)
        left = hessian @ (target - now)  # (in, out): minus half the gradient by the values
        for i, at in enumerate(range(0, columns, group)):
            part = slice(at, at + group)
            scale[i] = _best_scale(left[part], codes[part] - zero[i], hessian[part, part], scale[i], dtype)
            changed = (codes[part] - zero[i]) * scale[i] - now[part]
            left.addmm_(hessian[:, part], changed, alpha=-1)
            now[part] += changed
        steps = [Step(*parts) for parts in zip(scale.unbind(), zero.unbind(), strict=True)]
        values, kept, best = now.unbind(), codes.unbind(), latent.unbind()
        for start in range(0, columns, block):
            part = slice(start, min(start + block, columns))
            inner, mine = hessian[part, part].contiguous(), left[part].clone()
            curvature, changes = inner.diagonal().tolist(), torch.empty_like(mine)
            pulls, change = mine.unbind(), changes.unbind()
            for j, column in enumerate(
                range(part.start, part.stop)
            ):  # few and small operations: their number is the time
                on = steps[column // group]
                torch.add(values[column], pulls[j] / curvature[j], out=best[column])
                value = grid.dequantize(kept[column].copy_(grid.quantize(best[column], on)), on)
                torch.sub(value, values[column], out=change[j])
                mine.addr_(inner[j], change[j], alpha=-1)
                values[column].add_(change[j])
            left.addmm_(hessian[:, part], changes, alpha=-1)
    return codes.T.contiguous(), Step(scale.T.contiguous(), zero.T.contiguous()), latent.T.contiguous()


def _values(codes: Tensor, scale: Tensor, zero: Tensor, group: int) -> Tensor:
    """What codes stand for, all of them [in, out] and scale and zero [n, out]."""
    return (codes - zero.repeat_interleave(group, dim=0)) * scale.repeat_interleave(group, dim=0)


def _best_scale(left: Tensor, codes: Tensor, hessian: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A group's scales [out] with the least error for its codes less their zero point [g, out], others held.

    left: the rows [g, out] of the Hessian times the error. dtype: that stores the scales. A scale that would not be
    above zero stays.
    """
    curvature = (hessian @ codes).mul_(codes).sum(dim=0)
    found = (scale + (left * codes).sum(dim=0) / curvature).to(dtype).float()
    return torch.where((found > 0) & found.isfinite(), found, scale)
