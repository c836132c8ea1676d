"""Data-free text: sequences that the teacher itself writes, as LLM-QAT does (2305.17888, section 3.1).

A start token drawn uniformly over the vocabulary, a greedy prefix, then samples of the full distribution; or, for a
share of the sequences, what opens a conversation, then samples. What makes it fast: batches of equal lengths, a
key-value cache allocated once instead of grown by copying, sampling by inverting the cumulative distribution in two
levels, which needs one uniform number a token and sorts nothing.

Each sequence has a random stream of its own, keyed by the seed and its index, so neither the batch size nor an
interruption changes what is drawn.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

CDF_BLOCK = 256


@dataclass(frozen=True)
class Streams:
    """What chance decides for a batch of sequences, before any forward.

    given: int64 [batch, n], the first tokens, n at least 1; below 0 where a sequence has no more of them.
    opened: bool [batch], whether they are those that open a conversation.
    prefix: int64 [batch], how many tokens after the first are greedy, where they are not given.
    uniform: float32 [batch, length], the number in [0, 1) that picks the token at each position.
    """

    given: Tensor
    opened: Tensor
    prefix: Tensor
    uniform: Tensor


def draw_streams(
    seed: int,
    indices: Sequence[int],
    length: int,
    start_tokens: Sequence[int],
    greedy_prefix: tuple[int, int],
    opening: Sequence[int] = (),
    chat: float = 0.0,
) -> Streams:
    """Draw each sequence's stream from Philox(key=[seed, index]); a share `chat` of them begins with `opening`.

    Raises:
        ValueError: the opening leaves no place for what is to be written.
    """
    if chat and len(opening) >= length:
        raise ValueError(
            f"synthesize.length: {length} tokens leave no place behind the {len(opening)} that open a conversation; "
            "make it longer, or set synthesize.chat to 0"
        )
    given = torch.full((len(indices), max(1, len(opening))), -1)
    opened, prefixes, uniforms = torch.zeros(len(indices), dtype=torch.bool), [], []
    for i, index in enumerate(indices):
        stream = np.random.Generator(np.random.Philox(key=[seed, index]))
        given[i, 0] = start_tokens[int(stream.integers(len(start_tokens)))]
        prefixes.append(int(stream.integers(greedy_prefix[0], greedy_prefix[1] + 1)))
        uniforms.append(stream.random(length, dtype=np.float32))
        if opening and stream.random() < chat:  # drawn last: all other sequences are the same with any share
            given[i], opened[i], prefixes[-1] = torch.tensor(opening), True, 0
    return Streams(given, opened, torch.tensor(prefixes), torch.from_numpy(np.stack(uniforms)))


def allowed_starts(vocabulary: int, special: Sequence[int]) -> list[int]:
    """Token ids that a sequence may start with: all of the tokenizer's less the special ones."""
    barred = set(special)
    return [token for token in range(vocabulary) if token not in barred]


def sample(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """Invert the cumulative distribution of softmax(logits / temperature) at `uniform`.

    Args:
        logits: [batch, vocabulary], any float dtype.
        uniform: [batch], in [0, 1).
        temperature: above 0.

    Returns:
        int64 [batch]; a token of probability zero is never returned.
    """
    batch, vocabulary = logits.shape
    weights = logits.float()
    if temperature != 1.0:
        weights = weights / temperature
    weights = (weights - weights.amax(dim=1, keepdim=True)).exp_()
    if vocabulary % CDF_BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % CDF_BLOCK))
    blocks = weights.view(batch, -1, CDF_BLOCK)
    block_ends = blocks.sum(dim=2).double().cumsum(dim=1)  # (batch, blocks)
    target = uniform.double()[:, None] * block_ends[:, -1:]
    block = _first_above(block_ends, target)
    before = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, CDF_BLOCK)).squeeze(1).double().cumsum(dim=1)
    return (block * CDF_BLOCK + _first_above(inside, target - before)).squeeze(1)


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Index [batch, 1] of the first of rising `ends` [batch, n] above `target` [batch, 1], held below the last."""
    below_last = torch.nextafter(ends[:, -1:], torch.zeros_like(target))
    return torch.searchsorted(ends, torch.minimum(target, below_last), right=True)


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


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of one new token, the query heads that share a key head packed as its rows, so that keys are read once.

    query: [batch, heads, 1, head_dim]; key, value: [batch, kv_heads, filled, head_dim]. Returns [batch, 1, heads,
    head_dim]. `scaling` among the keyword arguments is the factor before softmax.
    """
    batch, heads, _, head_dim = query.shape
    packed = query.view(batch, key.shape[1], heads // key.shape[1], head_dim)
    scale = float(kwargs.get("scaling") or head_dim**-0.5)  # type: ignore[arg-type]
    mask = None
    if attention_mask is not None:  # a window, say: (batch, heads or 1, 1, filled), the same for every packed row
        mask = attention_mask[..., : key.shape[2]]
    out = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, 1, heads, head_dim), None


DECODE_ATTENTION = "permafrost_decode"
AttentionInterface.register(DECODE_ATTENTION, grouped_attention)
AttentionMaskInterface.register(DECODE_ATTENTION, sdpa_mask)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    streams: Streams,
    strategy: str,
    temperature: float,
    advance: Callable[[int], object],
) -> Tensor:
    """Write sequences, one token a forward.

    Args:
        model: a causal LM in eval mode.
        streams: what chance has decided.
        strategy: a name of SAMPLERS.
        temperature: of the sampled part.
        advance: called with the number of tokens written, at each position.

    Returns:
        int64 [batch, length], what is given first.

    Raises:
        ValueError: the model cannot go on from what it has read.
    """
    batch, length = streams.uniform.shape
    pick = SAMPLERS[strategy]
    kept, cache = _empty_cache(model, length)
    tokens = torch.empty(batch, length, dtype=torch.int64)
    tokens[:, 0] = streams.given[:, 0]
    before = model.config._attn_implementation
    model.set_attn_implementation(DECODE_ATTENTION)
    try:
        advance(batch)
        for position in range(1, length):
            latest = tokens[:, position - 1 : position]
            out = model(input_ids=latest, use_cache=True, **{kept: cache})
            cache = getattr(out, kept)
            tokens[:, position] = pick(out.logits[:, -1], streams, position, temperature)
            if position < streams.given.shape[1]:
                given = streams.given[:, position]
                tokens[:, position] = torch.where(given >= 0, given, tokens[:, position])
            advance(batch)
    finally:
        model.set_attn_implementation(before)
    return tokens


def _empty_cache(model: PreTrainedModel, length: int) -> tuple[str, Cache | None]:
    """What the model calls its cache, and an empty one; a state-space model makes its own."""
    known = inspect.signature(model.forward).parameters
    if "past_key_values" in known:
        layers = model.config.get_text_config().num_hidden_layers
        return "past_key_values", Cache(layers=[PreallocatedLayer(length) for _ in range(layers)])
    if "cache_params" in known:
        return "cache_params", None
    raise ValueError(f"{type(model).__name__} takes no cache, without which it cannot write token by token")


def _greedy(logits: Tensor, streams: Streams, position: int, temperature: float) -> Tensor:
    return logits.argmax(dim=1)


def _sampled(logits: Tensor, streams: Streams, position: int, temperature: float) -> Tensor:
    return sample(logits, streams.uniform[:, position], temperature)


def _hybrid(logits: Tensor, streams: Streams, position: int, temperature: float) -> Tensor:
    greedy = position <= streams.prefix
    if greedy.all():
        return logits.argmax(dim=1)
    drawn = _sampled(logits, streams, position, temperature)
    return torch.where(greedy, logits.argmax(dim=1), drawn) if greedy.any() else drawn


SAMPLERS = {"hybrid": _hybrid, "sampled": _sampled, "greedy": _greedy}


def valid_lengths(tokens: Tensor, eos: Sequence[int], passed: Tensor | int = 0) -> Tensor:
    """Tokens of each sequence up to and with its first end-of-sequence token: int64 [batch]; all if `eos` is empty.

    passed: int64 [batch], end-of-sequence tokens that do not count, those between a conversation's turns.
    """
    ends = torch.isin(tokens, torch.tensor(list(eos), dtype=torch.int64))
    ends[:, 0] = False  # a start token is no end
    before = (ends.cumsum(dim=1) <= torch.as_tensor(passed).reshape(-1, 1)).sum(dim=1)
    return (before + 1).clamp(max=tokens.shape[1])
