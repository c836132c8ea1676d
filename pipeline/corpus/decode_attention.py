"""Attention of new tokens over keys and values that are allocated once: the fastest way of decoding.py.

It knows softmax(q k^T) v behind a mask and nothing else, and says so when it is asked for more.
"""

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


class PreallocatedLayer(DynamicLayer):
    """Keys and values in buffers of full length; `update` writes in place and returns views of what is filled."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.filled = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_buffer = key_states.new_empty(*key_states.shape[:2], self.length, key_states.shape[3])
        self.value_buffer = value_states.new_empty(*value_states.shape[:2], self.length, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [batch, heads, new, head_dim]; returns [batch, heads, filled, head_dim] of each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        self.key_buffer[:, :, self.filled : end] = key_states
        self.value_buffer[:, :, self.filled : end] = value_states
        self.filled = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.filled


NEUTRAL = {  # arguments of an attention that tokens which read all that the mask leaves them do not need
    "dropout",  # none in eval mode
    "is_causal",
    "sliding_window",  # in the mask
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
}


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of new tokens over all that came before. Of one token, the query heads that share a key head are packed
    as its rows, so that keys are read once.

    query: [batch, heads, new, head_dim]; key: [batch, kv_heads, filled, head_dim]; value: [batch, kv_heads, filled,
    value_dim]. attention_mask: [batch, heads or 1, new, filled]; none: of all to one token, or of the first tokens each
    to those before it. scaling: the factor before softmax. Returns [batch, new, heads, value_dim].

    Raises:
        ValueError: it is called with anything else that may change the result (a cap, sinks, a bias).
    """
    unknown = [name for name, argument in kwargs.items() if argument is not None and name not in NEUTRAL]
    if unknown:
        raise ValueError(f"its attention is called with {', '.join(unknown)}")
    batch, heads, new, head_dim = query.shape
    scale = float(scaling or head_dim**-0.5)
    if new > 1:
        mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=heads > key.shape[1]
        )
        return out.transpose(1, 2), None
    packed = query.view(batch, key.shape[1], heads // key.shape[1], head_dim)
    mask = None
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[2]]
        if mask.shape[1] != 1:  # a row of its own for each query head
            mask = mask.reshape(mask.shape[0], *packed.shape[1:3], key.shape[2])
    out = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, 1, heads, value.shape[3]), None


DECODE_ATTENTION = "permafrost_decode"
AttentionInterface.register(DECODE_ATTENTION, grouped_attention)
AttentionMaskInterface.register(DECODE_ATTENTION, sdpa_mask)
