"""A cache that holds the codes of keys and values, and gives back one layer's at a time in float.

What it gives back is what quantize_cache makes of the same keys and values, bit for bit. It is for a model whose
attention is told so:

    undo = quantize_cache(model, scheme, packed=True)
    model.generate(tokens, past_key_values=PackedCache(model.config, scheme))
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from pipeline.knobs.scheme import KVCache
from pipeline.quant.cache_rows import ByChannel, ByToken
from pipeline.quant.grid import Grid
from pipeline.quant.packed_rows import PackedRows

KINDS = (DynamicLayer, DynamicSlidingWindowLayer)  # what a packed layer can stand for


class PackedLayer(DynamicLayer):
    """Codes of all tokens' keys and values, which a new token's are put behind; keys per channel but for the newest
    block, which is in float until it is whole."""

    is_croppable = False

    def __init__(self, scheme: KVCache) -> None:
        super().__init__()
        self.by_token = ByToken(scheme.group)
        self.by_channel = ByChannel(scheme.block) if scheme.keys == "channel" else None
        self.packed_keys, self.packed_values = (PackedRows(Grid(scheme.bits, scheme.symmetric)) for _ in range(2))
        self.rest: Tensor | None = None  # keys of the newest block, [batch, heads, tokens, size]
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take dtype and device of the first keys; nothing is allocated before there are codes."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the newest [batch, heads, new, size] of each; all of them come back, [batch, heads, tokens, size].

        Keys per channel of blocks that were not whole before come back in float, see key_channels.py.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[2]
        if self.by_channel is None:
            keys = self._stored(self.packed_keys, key_states)
        else:
            keys = self._in_blocks(key_states, self.by_channel)
        return keys, self._stored(self.packed_values, value_states)

    def _stored(self, packed: PackedRows, states: Tensor) -> Tensor:
        packed.append(self.by_token.rows(states))
        return self.by_token.states(packed.values(), states.shape[1]).to(self.dtype)

    def _in_blocks(self, states: Tensor, layout: ByChannel) -> Tensor:
        loose = states if self.rest is None else torch.cat([self.rest, states], dim=2)
        keys = loose
        if self.packed_keys.codes is not None:
            before = layout.states(self.packed_keys.values(), states.shape[1]).to(self.dtype)
            keys = torch.cat([before, loose], dim=2)
        whole = loose.shape[2] // layout.block * layout.block
        if whole:
            self.packed_keys.append(layout.rows(loose[:, :, :whole]))
        self.rest = loose[:, :, whole:].clone()
        return keys

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.cumulative_length

    def tensors(self) -> Iterator[Tensor]:
        """All that is stored."""
        yield from self.packed_keys.tensors()
        yield from self.packed_values.tensors()
        if self.rest is not None:
            yield self.rest

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Put function(tensor) in the place of each tensor [batch, ...]."""
        self.packed_keys.change(function)
        self.packed_values.change(function)
        if self.rest is not None:
            self.rest = function(self.rest)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take these sequences of the batch, as beam search does."""
        self.change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence of the batch so many times."""
        self.change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences of the batch."""
        self.change(lambda tensor: tensor[indices])

    def reset(self) -> None:
        """Forget all tokens."""
        self.packed_keys, self.packed_values = (PackedRows(self.packed_values.grid) for _ in range(2))
        self.rest, self.is_initialized, self.cumulative_length = None, False, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError: a cache that was cropped would have other blocks than one that was written anew."""
        raise ValueError("a packed cache forgets no tokens; decode without drafts, or with a DynamicCache")

    def offload(self) -> None:
        """Raises ValueError: codes stay where they are."""
        raise ValueError("a packed cache is not moved between devices; make it without offloading")


class PackedSlidingLayer(PackedLayer):
    """Of a layer with a sliding window, before whose newest token window - 1 others are kept."""

    is_sliding = True
    get_mask_sizes = DynamicSlidingWindowLayer.get_mask_sizes
    get_max_length = DynamicSlidingWindowLayer.get_max_length

    def __init__(self, scheme: KVCache, sliding_window: int) -> None:
        super().__init__(scheme)
        self.sliding_window = sliding_window

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """As above; what comes back is what was kept and what is new."""
        states = super().update(key_states, value_states)
        surplus = states[0].shape[2] - (self.sliding_window - 1)
        if surplus > 0:
            self.change(lambda rows: rows[:, surplus:])
        return states


class PackedCache(Cache):
    """Of a model of this config, empty.

    Raises:
        ValueError: the scheme leaves the cache in float; the model keeps something else than keys and values; or keys
            are to have a scale a channel, and it has a sliding window.
    """

    def __init__(self, config: PreTrainedConfig, scheme: KVCache) -> None:
        if not scheme.bits:
            raise ValueError("kv_cache.bits is 0, a cache in float; take a DynamicCache, or 2 to 8 bits")
        layers = DynamicCache(config=config).layers
        others = {type(layer).__name__ for layer in layers if type(layer) not in KINDS}
        if others:
            raise ValueError(f"a packed cache holds keys and values, and the model's has {', '.join(sorted(others))}")
        sliding = [isinstance(layer, DynamicSlidingWindowLayer) for layer in layers]
        if scheme.keys == "channel" and any(sliding):
            raise ValueError(
                "kv_cache.keys is channel, and the model has a sliding window, which moves over the blocks of tokens; "
                "take token"
            )
        super().__init__(
            layers=[
                PackedSlidingLayer(scheme, layer.sliding_window) if slides else PackedLayer(scheme)
                for layer, slides in zip(layers, sliding, strict=True)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors())
