"""A model's logits a few positions at a time.

Logits of a long text are gigabytes, so a forward is cut short at the head: what the head reads is kept, [batch, length,
hidden], and the head runs on parts of it. Where the model changes what its head gives (a cap, a scale), its own code is
run on those parts, so that this holds for any model.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models import plain_head

CHUNK = 256  # positions whose logits are held at once

Head = Callable[[Tensor], Tensor]
"""From what a head reads, [n, hidden], to logits, [n, vocabulary]."""


def reads(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """What the head reads over tokens [batch, length], before its inputs are quantized: [batch, length, hidden].

    Raises:
        ValueError: the model has no head, or calls it several times.
    """
    read: list[Tensor] = []

    def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(args[0])
        return args[0][:, :1], *args[1:]  # one position, whose logits nobody looks at

    _run(model, tokens, cut)
    if len(read) != 1:
        raise ValueError(f"{type(model).__name__} has no plain head: it calls it {len(read)} times a forward")
    return read[0]


def of(model: PreTrainedModel) -> Head:
    """A model's head. Where its logits are what that gives, it holds the head alone, and the decoder may go.

    Raises:
        ValueError: the model has no head.
    """
    module = _module(model)
    if plain_head.gives_logits(model, module):
        return lambda states: module(states[None])[0]
    return lambda states: _own_logits(model, states)


def in_chunks(head: Head, states: Tensor) -> Iterator[Tensor]:
    """The logits of CHUNK positions after the other: [CHUNK or fewer, vocabulary] each.

    Args:
        states: what the head reads, [n, hidden].
    """
    return map(head, states.split(CHUNK))


def _own_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """By the model's own code, whose decoder reads one token for it."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=states.device)
    logits: Tensor = _run(model, token, lambda _, args: (states[None], *args[1:]))
    return logits[0]


def _run(model: PreTrainedModel, tokens: Tensor, see: Callable[..., object]) -> Tensor:
    """The logits, with `see` called before the head, and before what quantizes its inputs."""
    handle = _module(model).register_forward_pre_hook(see, prepend=True)
    try:
        return model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()


def _module(model: PreTrainedModel) -> nn.Module:
    module = model.get_output_embeddings()
    if module is None:
        raise ValueError(f"{type(model).__name__} has no output head")
    return module
