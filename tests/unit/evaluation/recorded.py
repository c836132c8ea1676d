"""What a tiny teacher makes of some texts, for the tests that compare with it."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.evaluation import references
from pipeline.evaluation.references import DIALOGUE, HELD_OUT, LONG, References

FACTS = {"held_out": "a", "dtype": "float32", "way": "no cache", "ends": [2]}


def recorded(
    teacher: PreTrainedModel,
    held_out: Iterable[Tensor],
    long: Tensor | None = None,
    dialogues: Iterable[tuple[Tensor, Tensor]] = (),
) -> References:
    """References of such a teacher."""
    parts = [(HELD_OUT, row, None) for row in held_out]
    parts += [] if long is None else [(LONG, long, None)]
    parts += [(DIALOGUE, tokens, turns) for tokens, turns in dialogues]
    return references.record(teacher, references.documents(parts), FACTS, lambda n: None)


def cut(tokens: Tensor, lengths: Tensor) -> list[Tensor]:
    """Sequences of their own lengths."""
    return [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]


def random_tokens(count: int, seed: int = 3) -> Tensor:
    """Some that are not special."""
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed))
