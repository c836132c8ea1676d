"""The static range of a tensor from what passes through it in calibration.

Every observer sees the tensor twice: for each token's least and greatest value, then, where it needs one, for a
histogram between the least and the greatest of all. So it holds two numbers a token and a few kilobytes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import STEP_DTYPE, Quantizer, bounds
from pipeline.quant.grid import Grid

BINS = 8192
EXACT = 2**24  # values that float32 counts one by one
FAR = 8  # the few tokens that reach this part of the farthest, or more, get a grid of their own
FEW = 1 / 32  # of all tokens, at most
SHARES = [1 - i / 100 for i in range(96)]  # of the min-max range, that the mse observer tries: 1 down to 0.05


class Observed:
    """Least and greatest value seen, of each token and of all, and how often each of BINS equal bins between them."""

    def __init__(self) -> None:
        self.by_token: list[Tensor] = []
        self.least = torch.tensor(torch.inf)
        self.greatest = torch.tensor(-torch.inf)
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def see_range(self, x: Tensor) -> None:
        """First pass. x: [tokens, width]."""
        ranges = torch.stack(x.aminmax(dim=-1), dim=-1).float().reshape(-1, 2)
        self.by_token.append(ranges)
        self.least = torch.minimum(self.least, ranges[..., 0].amin())
        self.greatest = torch.maximum(self.greatest, ranges[..., 1].amax())

    def see_values(self, x: Tensor) -> None:
        """Second pass."""
        if self.greatest > self.least:
            for part in x.flatten().split(EXACT):
                self.counts += torch.histc(part.float(), BINS, float(self.least), float(self.greatest)).double()

    @property
    def edges(self) -> Tensor:
        """Ends of the bins: float64 [BINS + 1]."""
        return torch.lerp(
            self.least.double(), self.greatest.double(), torch.arange(BINS + 1, dtype=torch.float64) / BINS
        )

    @property
    def centres(self) -> Tensor:
        """Middle of each bin: float64 [BINS]."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def static_quantizer(observed: Observed, scheme: Activations) -> Quantizer:
    """Scale and zero point of a static activation from what was seen of it, and of a second grid where it has one."""
    grid = Grid(scheme.bits, scheme.symmetric)
    least, greatest = OBSERVERS[scheme.observer](observed, scheme, grid)
    step = grid.step(least, greatest, STEP_DTYPE)
    if scheme.observer != "split" or (least == observed.least and greatest == observed.greatest):
        return Quantizer(scheme, step)
    low, high = bounds(step, grid)
    return Quantizer(scheme, step, grid.step(observed.least - low, observed.greatest - high, STEP_DTYPE))


def _split(observed: Observed, scheme: Activations, grid: Grid) -> tuple[Tensor, Tensor]:
    """The range of the tokens that reach less than 1 / FAR of the farthest, if few reach more; else of all tokens.

    The few are an attention sink's, as a rule: the first token of a text, in the layers that make it one and undo it.
    """
    ranges = torch.cat(observed.by_token)
    reach = ranges.abs().amax(dim=-1)
    others = reach * FAR < reach.amax()
    if not bool(others.any()) or float((~others).float().mean()) > FEW:
        return observed.least, observed.greatest
    return ranges[others, 0].amin(), ranges[others, 1].amax()


def _minmax(observed: Observed, scheme: Activations, grid: Grid) -> tuple[Tensor, Tensor]:
    """All that was seen: nothing is clipped."""
    return observed.least, observed.greatest


def _percentile(observed: Observed, scheme: Activations, grid: Grid) -> tuple[Tensor, Tensor]:
    """The least range of whole bins that holds this percentage of the values.

    Symmetric grids leave out the largest magnitudes, asymmetric ones as many at either end.
    """
    share = scheme.percentile / 100
    if grid.symmetric:
        reach = torch.maximum(observed.edges[:-1].abs(), observed.edges[1:].abs())
        order = reach.argsort()
        top = reach[order][_first_reaching(observed.counts[order], share)].float()
        return -top, top
    greatest = observed.edges[1:][_first_reaching(observed.counts, (1 + share) / 2)]
    least = observed.edges.flip(0)[1:][_first_reaching(observed.counts.flip(0), (1 + share) / 2)]
    return least.float(), greatest.float()


def _first_reaching(counts: Tensor, share: float) -> Tensor:
    """Where the running sum of counts first holds this share of all; 1e-12 is for the product's own rounding."""
    cumulative = counts.cumsum(0)
    return torch.searchsorted(cumulative, share * cumulative[-1:] * (1 - 1e-12))[0]


def _mse(observed: Observed, scheme: Activations, grid: Grid) -> tuple[Tensor, Tensor]:
    """The share of the min-max range whose grid leaves the least squared error over the histogram."""
    best = observed.least, observed.greatest
    lowest = torch.tensor(torch.inf, dtype=torch.float64)
    values = observed.centres.float()
    for share in SHARES:
        candidate = share * observed.least, share * observed.greatest
        step = grid.step(*candidate, STEP_DTYPE)
        error = grid.dequantize(grid.quantize(values, step), step).sub_(values).double().square()
        total_error = (error * observed.counts).sum()
        if total_error < lowest:
            best, lowest = candidate, total_error
    return best


COUNTING = ("percentile", "mse")  # observers that want the histogram
OBSERVERS: dict[str, Callable[[Observed, Activations, Grid], tuple[Tensor, Tensor]]] = {
    "split": _split,
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
