"""Keys and values on an integer grid, as a quantized cache stores them: rotated, with a scale a token or group.

They are fake-quantized in an attention function of ours, so that a prefill without a cache, as lm-eval runs it, and
token-by-token generation see the same keys and values: quantizing a token does not depend on the others.
"""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.knobs.scheme import KVCache
from pipeline.quant.grid import Grid, Step, grouped


class _FakeQuantize(torch.autograd.Function):
    """dequantize(quantize(x)) of keys or values; min-max ranges clip nothing, so the gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scheme: KVCache) -> Tensor:
        batch, heads, tokens, size = x.shape
        grid = Grid(scheme.bits, scheme.symmetric)
        by_token = grouped(x.transpose(1, 2).reshape(batch, tokens, heads * size).float(), scheme.group)
        step: Step = grid.step_of(by_token)
        quantized = grid.dequantize(grid.quantize(by_token, step), step)
        return quantized.view(batch, tokens, heads, size).transpose(1, 2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def fake_quantize(x: Tensor, scheme: KVCache) -> Tensor:
    """Keys or values [batch, kv_heads, tokens, head_dim] as they come back from a cache of this scheme."""
    return _FakeQuantize.apply(x, scheme)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scheme: KVCache,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    key, value = fake_quantize(key, scheme), fake_quantize(value, scheme)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def quantize_cache(model: PreTrainedModel, scheme: KVCache) -> Callable[[], None]:
    """Quantize a model's keys and values from now on; returns what undoes it.

    Raises:
        ValueError: the model computes its attention itself, has none, or one that needs more than sdpa gives; or its
            keys' or values' width is no multiple of the group.
    """
    name = "permafrost_kv_" + "_".join(str(field) for field in astuple(scheme))
    widths: set[int] = set()

    def seeing(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.update(x.shape[1] * x.shape[3] for x in (key, value))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    before = model.config._attn_implementation
    try:
        if model._supports_sdpa:  # an attention with sinks, say, would lose them
            _set_attention(model, name, seeing)
            with torch.no_grad():
                model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), use_cache=False)
        if not widths:
            raise ValueError(
                f"{type(model).__name__} has no attention whose keys and values can be quantized; "
                "set kv_cache.bits to 0"
            )
        bad = [width for width in sorted(widths) if scheme.group and width % scheme.group]
        if bad:
            raise ValueError(f"kv_cache.group {scheme.group} does not divide the {bad[0]} key values of a token")
    except Exception:
        model.set_attn_implementation(before)
        raise
    _set_attention(model, name, partial(_attention, scheme=scheme))
    return lambda: model.set_attn_implementation(before)


def _set_attention(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> None:
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
