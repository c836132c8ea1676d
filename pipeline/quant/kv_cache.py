"""Keys and values on an integer grid, as a quantized cache stores them: rotated, with a scale a token or group.

They are fake-quantized in an attention function of ours, so that a prefill without a cache, as lm-eval runs it, and
token-by-token generation see the same keys and values: quantizing a token does not depend on the others. Where keys
have a scale a channel it does, on those of its block; key_channels.py says how the two are the same there.
"""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.knobs.scheme import KVCache
from pipeline.quant import key_channels
from pipeline.quant.cache_rows import ByChannel, ByToken, Layout
from pipeline.quant.float_signals import are_float
from pipeline.quant.grid import Grid

PREFIX = "permafrost_kv_"  # of the attentions' names


class _FakeQuantize(torch.autograd.Function):
    """dequantize(quantize(x)) of keys or values; min-max ranges clip nothing, so the gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, layout: Layout) -> Tensor:
        rows = layout.rows(x.float())
        step = grid.step_of(rows)
        quantized = grid.dequantize(grid.quantize(rows, step), step)
        return layout.states(quantized, x.shape[1]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quantize(x: Tensor, scheme: KVCache) -> Tensor:
    """Keys or values [batch, kv_heads, tokens, head_dim] with a scale a token or group, as they come back from a cache
    of this scheme."""
    return _FakeQuantize.apply(x, Grid(scheme.bits, scheme.symmetric), ByToken(scheme.group))


def fake_quantize_channels(keys: Tensor, scheme: KVCache) -> Tensor:
    """Keys [batch, kv_heads, blocks * block, head_dim] with a scale for each channel of a block, as they come back."""
    if not keys.shape[2]:
        return keys
    return _FakeQuantize.apply(keys, Grid(scheme.bits, scheme.symmetric), ByChannel(scheme.block))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scheme: KVCache,
    packed: bool,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if are_float() and not packed:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    value = value if packed else fake_quantize(value, scheme)
    if scheme.keys == "channel":
        on_grid = partial(fake_quantize_channels, scheme=scheme)
        return key_channels.attention(
            module, query, key, value, attention_mask, scheme.block, on_grid, packed, **kwargs
        )
    key = key if packed else fake_quantize(key, scheme)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def quantize_cache(model: PreTrainedModel, scheme: KVCache, packed: bool = False) -> Callable[[], None]:
    """Quantize a model's keys and values from now on; returns what undoes it.

    Args:
        packed: they come from a PackedCache of this scheme, which quantizes them; the model is to have one in each
            forward from now on.

    Raises:
        ValueError: the model computes its attention itself, has none, or one that needs more than sdpa gives; its keys'
            or values' width is no multiple of the group; or keys are to have a scale a channel and it has a sliding
            window.
    """
    name = PREFIX + "_".join(str(field) for field in (*astuple(scheme), *(["packed"] if packed else [])))
    before = model.config._attn_implementation
    try:
        problems = _problems(model, scheme, f"{name}_probe")
        if problems:
            raise ValueError("\n  ".join(problems))
    except Exception:
        model.set_attn_implementation(before)
        raise
    _set_attention(model, name, partial(_attention, scheme=scheme, packed=packed))
    return lambda: model.set_attn_implementation(before)


def by_place(model: PreTrainedModel) -> bool:
    """Whether keys are put on grids by their places in a row, as those with a scale a channel are: then a text is to
    begin at the row's first place, and two do not share a row."""
    name = str(model.config._attn_implementation)
    return name.startswith(PREFIX) and "_channel_" in name


def _problems(model: PreTrainedModel, scheme: KVCache, name: str) -> list[str]:
    """Why a model's cache cannot have this scheme; its attention is another one afterwards."""
    widths: set[int] = set()

    def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.update(x.shape[1] * x.shape[3] for x in ([key, value] if scheme.keys == "token" else [value]))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    if model._supports_sdpa:  # an attention with sinks, say, would lose them
        _set_attention(model, name, probe)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), use_cache=False)
    if not widths:
        kind = type(model).__name__
        return [f"{kind} has no attention whose keys and values can be quantized; set kv_cache.bits to 0"]
    bad = [width for width in sorted(widths) if scheme.group and width % scheme.group]
    problems = [f"kv_cache.group {scheme.group} does not divide the {bad[0]} key values of a token"] if bad else []
    if scheme.keys == "channel" and any(DynamicCache(config=model.config).is_sliding):
        problems.append(
            f"kv_cache.keys is channel, and {type(model).__name__} has a sliding window, which moves over the blocks "
            "of tokens; take token"
        )
    return problems


def _set_attention(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> None:
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
