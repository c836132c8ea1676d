"""Conversations of two turns that the teacher answers, greedily: texts on which every variant is read."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.evaluation import writing


def answered(
    teacher: PreTrainedModel,
    way: str,
    said: Sequence[list[list[int]]],
    limit: int,
    ends: Sequence[int],
    advance: Callable[[int], object],
) -> list[tuple[Tensor, Tensor]]:
    """The teacher's conversations.

    Args:
        as `writing.write`.

    Returns:
        of each, its tokens, int64 [length], and the answer that each of them belongs to, from 1, else 0: [length].

    Raises:
        ValueError: as `writing.write`.
    """
    talks = writing.write(teacher, way, said, limit, ends, advance)
    return [(torch.tensor(talk.tokens), torch.tensor(talk.turns)) for talk in talks]
