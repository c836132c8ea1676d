"""How long, how fast, and which sequences when: functions of step and seed alone, so that nothing needs saving."""

import math
from dataclasses import dataclass

import numpy as np


def fitting_rate(rotated: bool, fisher: bool) -> float:
    """The peak learning rate that fits the start that training has (LOG.md has the trials).

    rotated: whether its residual stream was. fisher: whether its errors were weighed by the Fisher information. Without
    rotation it makes no difference to the rate (none was tried with the one and without the other).
    """
    if not rotated:
        return 1e-4
    return 2e-4 if fisher else 2e-5


@dataclass(frozen=True)
class Schedule:
    """See the section `distill` of params.yaml for the units.

    batch: sequences a step, over all processes. accumulate: forwards in which each process takes its share of them.
    """

    steps: int
    batch: int
    accumulate: int
    lr: float
    scale_lr: float
    warmup: float
    min_lr: float
    weight_decay: float
    clip: float
    checkpoint_every: int
    dtype: str
    seed: int

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at a step, counted from 0: linear warm-up, then a cosine down to min_lr."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return self.min_lr + (1 - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def sequences(self, step: int, available: int) -> list[int]:
        """Indices of a step's sequences: a new permutation each epoch."""
        positions = range(step * self.batch, (step + 1) * self.batch)
        orders = {epoch: self._order(epoch, available) for epoch in {p // available for p in positions}}
        return [int(orders[p // available][p % available]) for p in positions]

    def parts(self, sequences: list[int], rank: int, processes: int) -> list[list[int]]:
        """A process's share of a step's sequences, forward by forward; the shares have the same number of sequences."""
        mine = sequences[rank::processes]
        size = len(mine) // self.accumulate
        return [mine[i * size : (i + 1) * size] for i in range(self.accumulate)]

    def _order(self, epoch: int, available: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, 2**32 + epoch])).permutation(available)
