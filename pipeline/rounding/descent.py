"""Coordinate descent on the codes and scales of a weight: what a rounding leaves of its output's error, made less.

GPTQ takes each column once, and knows no more of those after it than that they will make up for its error. Here every
code is taken again, with all others as they have become, and set to what is best for it (QuantEase, 2309.01885); before
each pass over the codes every scale is set to what is best for them (COMQ, 2403.07134). No step makes the error larger,
but for the rounding of scales to the dtype that stores them.
"""

import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step, stored_dtype


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
    group, dtype = scheme.group or weight.shape[1], stored_dtype(step.scale)
    target = weight.T.contiguous()  # (in, out): a column of the weight is a row here
    scale, zero, low, high = (part.T.contiguous() for part in (*step, *weights.grid_of(scheme).levels(step)))
    levels = codes.T - zero.repeat_interleave(group, dim=0)  # codes less their zero points
    latent, columns = target.clone(), len(target)
    buffers = _Block(min(block, columns), len(weight))
    for _ in range(passes):
        now = levels * scale.repeat_interleave(group, dim=0)
        left = hessian @ (target - now)  # (in, out): minus half the gradient by the values
        for i, at in enumerate(range(0, columns, group)):
            part = slice(at, at + group)
            scale[i] = _best_scale(left[part], levels[part], hessian[part, part], scale[i], dtype)
            changed = levels[part] * scale[i] - now[part]
            left.addmm_(hessian[:, part], changed, alpha=-1)
            now[part] += changed
        on = [grid for grid in zip(scale.unbind(), low.unbind(), high.unbind(), strict=True) for _ in range(group)]
        for start in range(0, columns, block):
            part = slice(start, min(start + block, columns))
            if part.stop - start != len(buffers.rows):
                buffers = _Block(part.stop - start, len(weight))
            changes = buffers.descend(hessian[part, part], left[part], now[part], levels[part], latent[part], on[part])
            left.addmm_(hessian[:, part], changes, alpha=-1)
    codes = levels + zero.repeat_interleave(group, dim=0)
    return codes.T.contiguous(), Step(scale.T.contiguous(), step.zero), latent.T.contiguous()


class _Block:
    """Buffers for a block of columns, whose rows are made once: to make them takes as long as to work on them."""

    def __init__(self, columns: int, outputs: int) -> None:
        self.hessian = torch.empty(columns, columns)
        self.left, self.values, self.levels, self.latent, self.changes = torch.empty(5, columns, outputs).unbind()
        parts = self.hessian, self.left, self.values, self.levels, self.latent, self.changes
        self.rows = list(zip(*(part.unbind() for part in parts), strict=True))

    def descend(
        self,
        hessian: Tensor,
        left: Tensor,
        values: Tensor,
        levels: Tensor,
        latent: Tensor,
        on: list[tuple[Tensor, Tensor, Tensor]],
    ) -> Tensor:
        """Set each column to what is best for it; returns by how much their values changed, [columns, out].

        Args:
            hessian: [columns, columns], of the block. left: as in `descend`. values, levels, latent: [columns, out],
                changed in place.
            on: of each column, its scale and its least and greatest level, [out].
        """
        self.hessian.copy_(hessian)
        self.left.copy_(left)
        self.values.copy_(values)
        shares = hessian.diagonal().reciprocal().tolist()
        for (row, pull, value, level, best, change), share, (scale, low, high) in zip(
            self.rows, shares, on, strict=True
        ):
            # few and small operations: their number is the time
            torch.add(value, pull, alpha=share, out=best)
            torch.div(best, scale, out=level).round_().clamp_(low, high)
            torch.mul(level, scale, out=change).sub_(value)
            self.left.addr_(row, change, alpha=-1)
        values += self.changes
        levels.copy_(self.levels)
        latent.copy_(self.latent)
        return self.changes


def _best_scale(left: Tensor, levels: Tensor, hessian: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A group's scales [out] with the least error for its levels [g, out], others held.

    left: the rows [g, out] of the Hessian times the error. dtype: that stores the scales. A scale that would change
    its sign stays.
    """
    curvature = (hessian @ levels).mul_(levels).sum(dim=0)
    best = (scale + (left * levels).sum(dim=0) / curvature).to(dtype).float()
    return torch.where((best * scale > 0) & best.isfinite(), best, scale)
