"""What hypothesis draws for the quantization tests: tensors of every kind that breaks a grid, and grids."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from pipeline.quant.grid import Grid, Step

SEEDS = st.integers(0, 2**32)
WEIGHT_BITS = [2, 3, 4, 5, 6, 7, 8]
ACTIVATION_BITS = [4, 5, 6, 7, 8, 16]


def random(seed: int, *shape: int, spread: float = 1.0) -> Tensor:
    """float32, normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


@st.composite
def matrices(draw: st.DrawFn, rows: int = 6, columns: int = 24, multiple: int = 1) -> Tensor:
    """float32 [rows, columns] of any magnitude, also of one sign or heavy-tailed; columns are a multiple of `multiple`.

    A row may be constant or zero, and so may the first `multiple` columns.
    """
    height, width = draw(st.integers(1, rows)), multiple * draw(st.integers(1, max(columns // multiple, 1)))
    spread = 10.0 ** draw(st.integers(-4, 4))
    x = random(draw(SEEDS), height, width, spread=spread)
    kind = draw(st.sampled_from(["normal", "positive", "negative", "heavy", "zero row", "zero group", "constant row"]))
    if kind in ("positive", "negative"):
        x = x.abs() if kind == "positive" else -x.abs()
    elif kind == "heavy":
        x = x * (x / spread).square() / 40
    elif kind == "zero group":
        x[:, :multiple] = 0
    elif kind in ("zero row", "constant row"):
        x[draw(st.integers(0, height - 1))] = 0.0 if kind == "zero row" else draw(st.sampled_from([-3.0, 0.01]))
    return x


def grids(bits: list[int]) -> st.SearchStrategy[Grid]:
    """Symmetric and asymmetric."""
    return st.builds(Grid, st.sampled_from(bits), st.booleans())


def with_ties(x: Tensor, scale: Tensor, seed: int) -> Tensor:
    """x with half of its values moved to the middle between two codes: exactly, where the scale is a power of two."""
    ties = ((x / scale).clamp(-(2.0**20), 2.0**20).floor() + 0.5) * scale
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, ties, x)


def from_tie(quotient: Tensor) -> Tensor:
    """How far a number is from the middle between two whole ones: float64."""
    quotient = quotient.double()
    return (quotient - quotient.floor() - 0.5).abs()


def inside(grid: Grid, x: Tensor, step: Step) -> Tensor:
    """Which values a grid does not clip: bool of x's shape."""
    codes, mask = grid.quantize_and_tell(x, step)
    assert torch.equal(codes, grid.quantize(x, step))
    assert mask is None or not mask.all()
    return torch.ones_like(x, dtype=torch.bool) if mask is None else mask
