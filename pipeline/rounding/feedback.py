"""GPTQ's feedback (2210.17323, algorithm 1): column after column, each one's error made up for by those to come."""

import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step

MAX_DAMPING = 1.0


def feed_back(
    weight: Tensor, upper: Tensor, order: Tensor, step: Step, scheme: Weights, block: int
) -> tuple[Tensor, Tensor]:
    """Codes of a weight on scales and zero points that are given, whatever error that leaves.

    Args:
        weight: float32 [out, in]. upper: of `inverse_factor`, of the Hessian in the order in which columns are taken.
        order: int64 [in]. step: [out, n]. block: columns whose errors reach the others at once; changes speed alone.

    Returns:
        Codes and what each was rounded from, both float32 [out, in], in the weight's own order.
    """
    columns = weight.shape[1]
    left = weight.T[order].contiguous()  # (in, out): a column of the weight is a row here
    group = scheme.group or columns
    parts = step.scale, *weights.grid_of(scheme).levels(step)
    grids = list(zip(*(part.T.contiguous().unbind() for part in parts), strict=True))
    on = [grids[column // group] for column in order.tolist()]
    shares = (upper / upper.diagonal()[:, None]).triu_(1)  # of a column's error that those after it make up for
    levels, buffers = torch.empty_like(left), _Block(min(block, columns), len(weight))
    for start in range(0, columns, block):
        part = slice(start, min(start + block, columns))
        if part.stop - start < block:
            buffers = _Block(part.stop - start, len(weight))
        errors = buffers.feed_back(left[part], shares[part, part], levels[part], on[part])
        left[part.stop :].addmm_(shares[part, part.stop :].T, errors, alpha=-1)
    back = torch.argsort(order)
    return weights.add_zero(levels[back].T, step), left[back].T.contiguous()


class _Block:
    """Buffers for a block of columns, whose rows are made once: to make them takes as long as to work on them."""

    def __init__(self, columns: int, outputs: int) -> None:
        self.shares = torch.empty(columns, columns)
        self.left, self.levels, self.errors = torch.empty(3, columns, outputs).unbind()
        parts = self.shares, self.left, self.levels, self.errors
        self.rows = list(zip(*(part.unbind() for part in parts), strict=True))

    def feed_back(self, left: Tensor, shares: Tensor, levels: Tensor, on: list[tuple[Tensor, ...]]) -> Tensor:
        """Round each column; returns their errors, [columns, out].

        Args:
            left: [columns, out], of the weight, changed in place. shares: [columns, columns]. levels: [columns, out],
                set. on: of each column, its scale and its least and greatest level, [out].
        """
        self.shares.copy_(shares)
        self.left.copy_(left)
        for (share, row, level, error), (scale, low, high) in zip(self.rows, on, strict=True):
            # few and small operations: their number is the time
            torch.div(row, scale, out=level).round_().clamp_(low, high)
            torch.addcmul(row, level, scale, value=-1, out=error)
            self.left.addr_(share, error, alpha=-1)
        left.copy_(self.left)
        levels.copy_(self.levels)
        return self.errors


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the damped Hessian's inverse [in, in], and the damping that it took.

    Raises:
        ValueError: it does not invert with any damping up to MAX_DAMPING.
    """
    tried = damping
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(hessian, tried))
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper, tried
        if tried >= MAX_DAMPING:
            raise ValueError(f"the Hessian does not invert with damping {tried}; are the calibration inputs finite?")
        tried = min(tried * 10, MAX_DAMPING)


def damped(hessian: Tensor, share: float) -> Tensor:
    """The Hessian with a share of its mean diagonal added to the diagonal."""
    damped = hessian.clone()
    damped.diagonal().add_(share * hessian.diagonal().mean().clamp(min=1e-12))
    return damped
