"""The static range of a tensor from what passes through it in calibration.

Every observer sees the tensor twice: for its least and greatest value, then, where it needs one, for a histogram
between them. So it holds a few kilobytes whatever passes through.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import STEP_DTYPE
from pipeline.quant.grid import Grid, Step

BINS = 8192
EXACT = 2**24  # values that float32 counts one by one
SHARES = [1 - i / 100 for i in range(96)]  # of the min-max range, that the mse observer tries: 1 down to 0.05


class Observed:
    """Least and greatest value seen, and how often each of BINS equal bins between them."""

    def __init__(self) -> None:
        self.least = torch.tensor(torch.inf)
        self.greatest = torch.tensor(-torch.inf)
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def see_range(self, x: Tensor) -> None:
        """First pass."""
        least, greatest = x.aminmax()
        self.least = torch.minimum(self.least, least.float())
        self.greatest = torch.maximum(self.greatest, greatest.float())

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


def static_step(observed: Observed, scheme: Activations) -> Step:
    """Scale and zero point of a static activation from what was seen of it; scalars."""
    grid = Grid(scheme.bits, scheme.symmetric)
    least, greatest = OBSERVERS[scheme.observer](observed, scheme, grid)
    return grid.step(least, greatest, STEP_DTYPE)


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


OBSERVERS: dict[str, Callable[[Observed, Activations, Grid], tuple[Tensor, Tensor]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
