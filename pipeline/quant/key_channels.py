"""Attention over keys that have a scale for each channel in a block of tokens (KIVI, 2402.02750).

A block is put on its grid when it is whole, so its scales depend on tokens that come later than most of it. That is
causal all the same: a query reads its own block in float and those before it on their grid, which is what a cache holds
when its token is written. So a prefill, of which queries of one block are computed together, gives what writing token
by token gives.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    block: int,
    on_grid: Callable[[Tensor], Tensor],
    packed: bool,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the newest tokens over all.

    Args:
        query: [batch, heads, new, size]. key, value: [batch, kv_heads, tokens, size], the first token's first; values
            as they are to be read.
        attention_mask: bool, or what is added to the products, [batch, heads or 1, new, tokens]; None: causal.
        on_grid: keys [batch, kv_heads, blocks * block, size] as the cache gives them back.
        packed: whether blocks that were whole before the newest tokens came are on their grid already.

    Returns:
        [batch, new, heads, size].
    """
    tokens, new = key.shape[2], query.shape[2]
    past = tokens - new
    done = past // block * block if packed else 0
    newest = (tokens - 1) // block  # the block of the newest query, which no query reads on its grid
    rounded = torch.cat([key[:, :, :done], on_grid(key[:, :, done : newest * block])], dim=2)
    outputs = []
    for number in range(past // block, newest + 1):
        start, end = number * block, min((number + 1) * block, tokens)
        queries = slice(max(start - past, 0), end - past)
        keys = torch.cat([rounded[:, :, :start], key[:, :, start:end]], dim=2)
        mask = _mask(attention_mask, queries, end, query.device)
        output, _ = sdpa_attention_forward(module, query[:, :, queries], keys, value[:, :, :end], mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _mask(whole: Tensor | None, queries: slice, end: int, device: torch.device) -> Tensor | None:
    """What of a mask is for these queries, the last of which reads all of `end` keys."""
    if whole is not None:
        return whole[:, :, queries, :end]
    count = queries.stop - queries.start
    return torch.ones(count, end, dtype=torch.bool, device=device).tril(end - count)[None, None] if count > 1 else None
