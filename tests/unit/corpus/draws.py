"""Numbers that are drawn, and the tokens that they stand for."""

import torch
from torch import Tensor

STARTS = list(range(3, 259))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniforms(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def inverted(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where the float64 cumulative distribution passes `uniform`, and whether float32 noise could move that."""
    ends = torch.softmax(logits.double() / temperature, dim=1).cumsum(dim=1)
    tokens = torch.searchsorted(ends, uniform.double()[:, None], right=True).squeeze(1)
    return tokens, (ends - uniform.double()[:, None]).abs().amin(dim=1) < 2e-6
