"""How much memory a cache of keys and values takes, by its scheme and the length of the context.

It is counted, by the layout of packed_cache.py, from what a model keeps of a token; no weight is read.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from pipeline.knobs.scheme import KVCache
from pipeline.quant.grid import SCALE_DTYPE
from pipeline.quant.packed_cache import KINDS
from pipeline.quant.packed_rows import stored_bits


class Layer(NamedTuple):
    """What a layer keeps: numbers of a token's keys and values, over all heads; window: tokens that it sees, 0: all."""

    keys: int
    values: int
    window: int = 0


Shape = Sequence[Layer]
LLAMA_7B: Shape = (Layer(32 * 128, 32 * 128),) * 32
FLOAT = KVCache(0)


def shape(config: PreTrainedConfig) -> Shape:
    """What each layer of a model of this config keeps, as a forward without numbers, on torch's meta device, tells.

    Raises:
        ValueError: it keeps something else than keys and values.
    """
    with torch.device("meta"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        cache = DynamicCache(config=config)
        others = {type(layer).__name__ for layer in cache.layers if type(layer) not in KINDS}
        if others:
            raise ValueError(f"{type(model).__name__} keeps {', '.join(sorted(others))}, no keys and values alone")
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return [
        Layer(layer.keys[0, :, 0].numel(), layer.values[0, :, 0].numel(), getattr(layer, "sliding_window", 0))
        for layer in cache.layers
    ]


def cache_bytes(
    layers: Shape, scheme: KVCache, tokens: int, batch: int = 1, float_dtype: torch.dtype = torch.float16
) -> int:
    """Bytes of a cache after so many tokens of each sequence.

    Args:
        scheme: FLOAT: all of it is in float_dtype, as is, of keys per channel, the block that is not whole.
    """
    return batch * sum(_layer_bytes(layer, scheme, tokens, float_dtype.itemsize) for layer in layers)


def _layer_bytes(layer: Layer, scheme: KVCache, tokens: int, float_bytes: int) -> int:
    held = min(tokens, layer.window - 1) if layer.window else tokens
    if not scheme.bits:
        return held * (layer.keys + layer.values) * float_bytes
    values = held * _row_bytes(scheme, layer.values, layer.values // (scheme.group or layer.values))
    if scheme.keys == "channel":
        blocks, rest = divmod(held, scheme.block)
        row = _row_bytes(scheme, layer.keys * scheme.block, layer.keys)
        return values + blocks * row + rest * layer.keys * float_bytes
    return values + held * _row_bytes(scheme, layer.keys, layer.keys // (scheme.group or layer.keys))


def _row_bytes(scheme: KVCache, count: int, groups: int) -> int:
    """Of `count` codes, and of a scale and, if there are any, a zero point for each group."""
    codes = -(-count * stored_bits(scheme.bits) // 8)
    return codes + groups * (SCALE_DTYPE.itemsize + (0 if scheme.symmetric else 1))
