"""Round a weight some output channels at a time, each making up for the errors of those before it.

Where the outputs' errors are weighed by a matrix O, as in tr(O E H E^T), rows of E [out, in] count together. With
O = L D L^T, L unit lower triangular, that is the sum over rows of D_i a_i H a_i^T, with a_i = e_i + sum over k > i of
L_ki e_k: each row is a problem of its own, of the weight moved by what is known of the rows after it. This is YAQA's
two-sided feedback (2505.22988), whose other side is GPTQ's. Here blocks of rows stand for rows: within a block they do
not make up for each other.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

ROWS = 256  # of a block: fewer are slower, and hardly better
MAX_DAMPING = 1.0


class HasWeight(Protocol):
    """Whatever a weight is rounded to."""

    @property
    def weight(self) -> Tensor:
        """float32 [rows, in]."""
        ...


R = TypeVar("R", bound=HasWeight)


def round_across(
    weight: Tensor, outputs: Tensor, damping: float, rounded: Callable[[Tensor], R], rows: int = ROWS
) -> list[R]:
    """What `rounded` makes of each block of rows, from the first to the last; the last is the first to be rounded.

    Args:
        weight: float32 [out, in]. outputs: float32 [out, out], symmetric; up to a factor.
        damping: share of the mean diagonal that is added to the diagonal of `outputs`; more of it until there is a
            Cholesky factor.
        rounded: takes a block of rows, moved by the feedback.

    Raises:
        ValueError: there is no factor with any damping up to MAX_DAMPING.
    """
    lower = _factor(outputs, damping)
    done: list[R] = []
    errors = torch.empty_like(weight)
    for start in reversed(range(0, len(weight), rows)):
        end = min(start + rows, len(weight))
        own, below = lower[start:end, start:end], lower[end:, start:end]
        shares = torch.linalg.solve_triangular(own, below, upper=False, left=False)  # of L, [out - end, rows]
        block = rounded(torch.addmm(weight[start:end], shares.T.float(), errors[end:]))
        errors[start:end] = weight[start:end] - block.weight
        done.insert(0, block)
    return done


def _factor(outputs: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of a matrix with a share of its mean diagonal on its diagonal: float64."""
    exact, level = outputs.double(), outputs.diagonal().mean().double()
    while True:
        lower, failed = torch.linalg.cholesky_ex(exact + damping * level * torch.eye(len(exact)))
        if not failed:
            return lower
        if damping >= MAX_DAMPING:
            raise ValueError(f"the outputs' weights have no Cholesky factor with damping {damping}; are they finite?")
        damping = min(damping * 3, MAX_DAMPING)
