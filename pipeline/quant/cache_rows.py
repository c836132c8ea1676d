"""Which keys and values of a cache share a scale, as rows of groups: a row a token, or a row a block of tokens.

A row is what a cache appends at once. Values of a group lie along the last dimension, as Grid's `step_of` reads them.
"""

from dataclasses import dataclass

from torch import Tensor

from pipeline.quant.grid import grouped


@dataclass(frozen=True)
class ByToken:
    """A row a token: the values of its heads one after the other, in groups of `group`; 0: one group."""

    group: int

    def rows(self, x: Tensor) -> Tensor:
        """[batch, tokens, groups, group] of keys or values [batch, heads, tokens, size]."""
        return grouped(x.transpose(1, 2).flatten(2), self.group)

    def states(self, rows: Tensor, heads: int) -> Tensor:
        """[batch, heads, tokens, size] again."""
        return rows.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class ByChannel:
    """A row a block of `block` tokens: a group for each channel of each head."""

    block: int

    def rows(self, x: Tensor) -> Tensor:
        """[batch, blocks, heads * size, block] of keys [batch, heads, blocks * block, size]."""
        return x.unflatten(2, (-1, self.block)).permute(0, 2, 1, 4, 3).flatten(2, 3)

    def states(self, rows: Tensor, heads: int) -> Tensor:
        """[batch, heads, blocks * block, size] again."""
        return rows.unflatten(2, (heads, -1)).permute(0, 2, 1, 4, 3).flatten(2, 3)


Layout = ByToken | ByChannel
