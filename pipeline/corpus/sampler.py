"""Data-free text: sequences that the teacher itself writes, as LLM-QAT does (2305.17888, section 3.1).

A start token drawn uniformly over the vocabulary, a greedy prefix, then samples of the full distribution; or, for a
share of the sequences, what opens a conversation, then samples. What makes it fast: batches of equal lengths, the
decoding of decoding.py, sampling by inverting the cumulative distribution in two levels, which needs one uniform number
a token and sorts nothing.

Each sequence has a random stream of its own, keyed by the seed and its index, so neither the batch size nor an
interruption changes what is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.corpus import decoding

CDF_BLOCK = 256


@dataclass(frozen=True)
class Streams:
    """What chance decides for a batch of sequences, before any forward.

    prompt: int64 [batch, n], the first tokens, n at least 1; below 0 where a sequence has no more of them.
    opened: bool [batch], whether they are those that open a conversation.
    prefix: int64 [batch], how many tokens after the first are greedy, where the prompt does not give them.
    uniform: float32 [batch, length], the number in [0, 1) that picks the token at each position.
    """

    prompt: Tensor
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
    prompts = torch.full((len(indices), max(1, len(opening))), -1)
    opened, prefixes, uniforms = torch.zeros(len(indices), dtype=torch.bool), [], []
    for i, index in enumerate(indices):
        stream = np.random.Generator(np.random.Philox(key=[seed, index]))
        prompts[i, 0] = start_tokens[int(stream.integers(len(start_tokens)))]
        prefixes.append(int(stream.integers(greedy_prefix[0], greedy_prefix[1] + 1)))
        uniforms.append(stream.random(length, dtype=np.float32))
        if opening and stream.random() < chat:  # drawn last: all other sequences are the same with any share
            prompts[i], opened[i], prefixes[-1] = torch.tensor(opening), True, 0
    return Streams(prompts, opened, torch.tensor(prefixes), torch.from_numpy(np.stack(uniforms)))


def sampled_from(streams: Streams, strategy: str, temperature: float) -> Tensor:
    """Where the first token stands that is drawn from the teacher's own distribution: int64 [batch]; the length where
    none is, in greedy text or at a temperature other than 1."""
    length = streams.uniform.shape[1]
    if strategy == "greedy" or temperature != 1.0:
        return torch.full_like(streams.prefix, length)
    prompt_lengths = (streams.prompt >= 0).sum(dim=1)
    return prompt_lengths if strategy == "sampled" else torch.maximum(prompt_lengths, streams.prefix + 1)


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

    Raises:
        ValueError: a logit is NaN or infinite (-inf is not), or all of a row are -inf.
    """
    batch, vocabulary = logits.shape
    weights = logits.float()
    greatest = weights.amax(dim=1, keepdim=True)
    _require_finite(greatest)
    weights = weights - greatest
    if temperature != 1.0:
        weights = weights / temperature
    weights = weights.exp_()
    if vocabulary % CDF_BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % CDF_BLOCK))
    blocks = weights.view(batch, -1, CDF_BLOCK)
    block_ends = blocks.sum(dim=2).double().cumsum(dim=1)  # (batch, blocks)
    target = uniform.double()[:, None] * block_ends[:, -1:]
    block = _first_above(block_ends, target)
    before = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, CDF_BLOCK)).squeeze(1).double().cumsum(dim=1)
    return (block * CDF_BLOCK + _first_above(inside, target - before)).squeeze(1)


def most_likely(logits: Tensor) -> Tensor:
    """The token of the greatest logit: int64 [batch] from [batch, vocabulary].

    Raises:
        ValueError: as `sample`.
    """
    tokens = logits.argmax(dim=1)
    _require_finite(logits.gather(1, tokens[:, None]))
    return tokens


def _require_finite(greatest: Tensor) -> None:
    """The greatest logit of each row, NaN where one is, tells whether the row is a distribution."""
    if not bool(greatest.isfinite().all()):
        raise ValueError("the logits are not finite; is the teacher sound?")


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Index [batch, 1] of the first of rising `ends` [batch, n] above `target` [batch, 1], held below the last."""
    below_last = torch.nextafter(ends[:, -1:], torch.zeros_like(target))
    return torch.searchsorted(ends, torch.minimum(target, below_last), right=True)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    streams: Streams,
    strategy: str,
    temperature: float,
    advance: Callable[[int], object],
    way: str | None = None,
) -> Tensor:
    """Write sequences, one token a forward.

    Args:
        model: a causal LM in eval mode.
        streams: what chance has decided.
        strategy: a name of SAMPLERS.
        temperature: of the sampled part.
        advance: called with the number of tokens written, at each position.
        way: a name of decoding.WAYS; None: the one that `decoding.choose` takes.

    Returns:
        int64 [batch, length], the prompt first.

    Raises:
        ValueError: the model is no causal one, or its logits are not finite.
    """
    batch, length = streams.uniform.shape
    pick = SAMPLERS[strategy]
    tokens = torch.empty(batch, length, dtype=torch.int64)
    tokens[:, 0] = streams.prompt[:, 0]
    name = decoding.choose(model, length).name if way is None else way
    with decoding.WAYS[name](model, length) as step:
        advance(batch)
        for position in range(1, length):
            logits = step(tokens[:, :position])
            try:
                tokens[:, position] = pick(logits, streams, position, temperature)
            except ValueError as error:
                raise ValueError(f"token {position + 1} of the sequences cannot be drawn: {error}") from None
            if position < streams.prompt.shape[1]:
                prompt_tokens = streams.prompt[:, position]
                tokens[:, position] = torch.where(prompt_tokens >= 0, prompt_tokens, tokens[:, position])
            advance(batch)
    return tokens


def _greedy(logits: Tensor, streams: Streams, position: int, temperature: float) -> Tensor:
    return most_likely(logits)


def _sampled(logits: Tensor, streams: Streams, position: int, temperature: float) -> Tensor:
    return sample(logits, streams.uniform[:, position], temperature)


def _hybrid(logits: Tensor, streams: Streams, position: int, temperature: float) -> Tensor:
    greedy = position <= streams.prefix
    if greedy.all():
        return most_likely(logits)
    drawn = _sampled(logits, streams, position, temperature)
    return torch.where(greedy, most_likely(logits), drawn) if greedy.any() else drawn


SAMPLERS = {"hybrid": _hybrid, "sampled": _sampled, "greedy": _greedy}


def valid_lengths(tokens: Tensor, eos: Sequence[int], passed: Tensor | int = 0) -> Tensor:
    """Tokens of each sequence up to and with its first end-of-sequence token: int64 [batch]; all if `eos` is empty.

    passed: int64 [batch], end-of-sequence tokens that do not count, those between a conversation's turns.
    """
    ends = torch.isin(tokens, torch.tensor(list(eos), dtype=torch.int64))
    ends[:, 0] = False  # a start token is no end
    before = (ends.cumsum(dim=1) <= torch.as_tensor(passed).reshape(-1, 1)).sum(dim=1)
    return (before + 1).clamp(max=tokens.shape[1])
