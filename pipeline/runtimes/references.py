"""What exports are held against: the quantized model as it was trained, and the teacher, on the same text."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.corpus.artifact import valid_mask
from pipeline.models import context, saved
from pipeline.models.vocabulary import special_tokens
from pipeline.quant.model import QuantizedModel
from pipeline.runtimes.hugging_face import greedy, sequence_logits
from pipeline.runtimes.limits import Limits


@dataclass(frozen=True)
class Text:
    """What runtimes are asked of.

    tokens: int64 [sequences, length]. valid: bool of the same shape. prompts: int64 [prompts, length of a prompt], no
    two alike. count: tokens that are written after each.
    """

    tokens: Tensor
    valid: Tensor
    prompts: Tensor
    count: int

    @property
    def context(self) -> int:
        """The longest text of it, in tokens."""
        return max(self.tokens.shape[1], self.prompts.shape[1] + self.count)


def text(tokens: Tensor, lengths: Tensor, sequences: int, prompts: int, prompt: int, count: int) -> Text:
    """The first sequences, and the beginnings of as many, or of the first that do not begin alike.

    Args:
        tokens, lengths: the held-out split, int64 [held out, length] and [held out]. prompt: tokens of one. count: that
            are written after each.
    """
    whole = [row[:prompt] for row, valid in zip(tokens, lengths, strict=True) if int(valid) >= prompt]
    beginnings = {tuple(row.tolist()): row for row in whole} or {(): tokens[0, :prompt]}
    valid = valid_mask(lengths, tokens.shape[1])[:sequences]
    return Text(tokens[:sequences], valid, torch.stack([*itertools.islice(beginnings.values(), prompts)]), count)


@dataclass(frozen=True)
class References:
    """A variant's.

    Attributes:
        quantized: as it was trained. model: a float model with its numbers, inputs and KV cache in float. tokenizer:
            the teacher's. special: ids of tokens that stand for no text.
        teacher, student, in_float: float32 logits [length, vocabulary] of each sequence; of the student with inputs and
            KV cache on their grids, as it was trained, and in float, as most runtimes have them.
        continuations: the student's, with inputs and KV cache in float.
    """

    quantized: QuantizedModel
    model: PreTrainedModel
    tokenizer: Any
    special: frozenset[int]
    text: Text
    teacher: list[Tensor]
    student: list[Tensor]
    in_float: list[Tensor]
    continuations: list[list[int]]

    def within(self, limits: Limits | None) -> "References":
        """Of a part of the text; None: all of it."""
        if limits is None:
            return self
        sequences, positions, prompts, tokens = limits
        some = self.text
        part = Text(
            some.tokens[:sequences, :positions],
            some.valid[:sequences, :positions],
            some.prompts[:prompts],
            min(some.count, tokens),
        )
        teacher, student, in_float = (
            [values[:positions] for values in logits[:sequences]]
            for logits in (self.teacher, self.student, self.in_float)
        )
        continuations = [ids[:tokens] for ids in self.continuations[:prompts]]
        return replace(
            self, text=part, teacher=teacher, student=student, in_float=in_float, continuations=continuations
        )

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.teacher[0].shape[1])


def references(quantized: QuantizedModel, teacher: str | Path, asked: Text) -> References:
    """Run the teacher and a model that was quantized from it.

    Raises:
        ValueError: the text is longer than the model's context, or the two do not fit each other.
    """
    model, tokenizer = saved.load_model(teacher), saved.load_tokenizer(teacher)
    longest = context.context_length(model)
    if longest is not None and asked.context > longest:
        raise ValueError(
            f"prove.tokens: a prompt of {asked.prompts.shape[1]} tokens and {asked.count} more are over the {longest} "
            "of the model's context; lower it"
        )
    of_teacher = [*sequence_logits(model, asked.tokens)]
    undo = quantized.put_into(model)
    on_grids = bool(quantized.inputs) or quantized.kv_cache.bits > 0
    student = [*sequence_logits(model, asked.tokens)] if on_grids else []
    undo()
    in_float = [*sequence_logits(model, asked.tokens)]
    return References(
        quantized=quantized,
        model=model,
        tokenizer=tokenizer,
        special=frozenset(special_tokens(tokenizer)),
        text=asked,
        teacher=of_teacher,
        student=student or in_float,
        in_float=in_float,
        continuations=greedy(model, asked.prompts, asked.count),
    )
