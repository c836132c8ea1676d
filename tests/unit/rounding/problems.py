"""Problems for a rounding to solve, and the errors that it leaves."""

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant.grid import grouped

SCHEMES = [Weights(bits, symmetric, group) for bits in (2, 3, 4, 8) for symmetric in (True, False) for group in (0, 4)]
FOUR = Weights(4)
named = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def problem(seed: int, out: int = 12, columns: int = 16, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, columns], correlated inputs X [tokens, columns] of unequal strength, and X^T X."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    strength = torch.linspace(0.3, 3, columns)[torch.randperm(columns, generator=generator)]
    x = torch.randn(tokens, columns, generator=generator) @ mixing * strength
    return torch.randn(out, columns, generator=generator), x, x.T @ x


def output_error(weight: Tensor, approximation: Tensor, x: Tensor) -> float:
    return float((x.double() @ (weight - approximation).double().T).square().sum())


def group_errors(weight: Tensor, approximation: Tensor, scheme: Weights, hessian: Tensor | None = None) -> Tensor:
    """Squared error of each group by itself: of the weight, or, where there is a Hessian, of the output.

    The latter leaves out what two groups' errors do together. Returns float64 [out, n].
    """
    size = scheme.group or weight.shape[1]
    error = grouped((weight - approximation).double(), size)
    if hessian is None:
        return error.square().sum(dim=-1)
    starts = range(0, weight.shape[1], size)
    blocks = torch.stack([hessian[i : i + size, i : i + size] for i in starts]).double()
    return torch.einsum("oni,nij,onj->on", error, blocks, error)
