"""Greedy answers to prompts of any lengths, in turns: a token a forward of all of them, or as many as all are told.

Greedy text is what a model alone decides, so two models can be set side by side by it without drawing anything.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from pipeline.corpus import decoding, sampler

BATCH = 64  # conversations that are written at once: their caches are held together


@dataclass
class Script:
    """A conversation: what is said to the model before each of its answers, and what came of it.

    tokens: all of it so far. turns: of each token the answer it belongs to, from 1; 0 of what was said to the model.
    ended: of each answer, whether one of the model's tokens ended it; one that reaches the limit was not.
    """

    said: list[list[int]]
    tokens: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)

    def answer(self, turn: int) -> list[int]:
        """The tokens of an answer, without the one that ends it."""
        own = [token for token, of_turn in zip(self.tokens, self.turns, strict=True) if of_turn == turn]
        return own[: len(own) - self.ended[turn - 1]]


def longest(said: Sequence[list[list[int]]], limit: int) -> int:
    """Tokens that the longest of some conversations may come to, with answers of `limit` tokens at most."""
    return max((sum(len(part) + limit for part in parts) for parts in said), default=0)


def steps(said: Sequence[list[list[int]]], limit: int) -> int:
    """Tokens that `write` reads for them at most: of each batch its longest less one."""
    return sum(longest(said[start : start + BATCH], limit) - 1 for start in range(0, len(said), BATCH))


@torch.inference_mode()
def write(
    model: PreTrainedModel,
    way: str,
    said: Sequence[list[list[int]]],
    limit: int,
    ends: Collection[int],
    advance: Callable[[int], object],
    complete: Callable[[list[int]], bool] = lambda answer: False,
) -> list[Script]:
    """Let a model answer.

    Args:
        model: in eval mode. way: a name of decoding.WAYS. said: of each conversation, the tokens before each answer,
            at least one before the first. limit: tokens of an answer, at most. ends: tokens that end one, and belong
            to it; where what is said next begins with the same token, it is there once.
        advance: called after each forward with the tokens of a conversation that it read; `steps` of them at most.
        complete: whether an answer of these tokens needs no more of them, though none ends it.

    Raises:
        ValueError: a logit is not finite, or a conversation begins with nothing.
    """
    scripts = [Script([list(part) for part in parts]) for parts in said]
    if not all(script.said and script.said[0] for script in scripts):
        raise ValueError("a conversation begins with no token; the tokenizer gives none for its first words")
    for start in range(0, len(scripts), BATCH):
        rows = [_Row(script, limit, frozenset(ends), complete) for script in scripts[start : start + BATCH]]
        _write(model, way, rows, longest(said[start : start + BATCH], limit), advance)
    return scripts


def _write(
    model: PreTrainedModel, way: str, rows: Sequence["_Row"], length: int, advance: Callable[[int], object]
) -> None:
    """A batch of them, in which none comes to more than so many tokens."""
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    read = 0
    with decoding.WAYS[way](model, length) as step:
        for position in range(length):
            likely = [0] * len(rows)
            if any(row.writes for row in rows):
                likely = sampler.most_likely(step(tokens[:, :position])).tolist()
                advance(position - read)
                read = position
            tokens[:, position] = torch.tensor([row.next(token) for row, token in zip(rows, likely, strict=True)])
            if all(row.done for row in rows):
                break


class _Row:
    """Where a conversation stands while it is written."""

    def __init__(self, script: Script, limit: int, ends: frozenset[int], complete: Callable[[list[int]], bool]) -> None:
        self.script, self.limit, self.ends, self.complete = script, limit, ends, complete
        self.waiting = list(script.said[0])  # of what is being said to the model
        self.written: list[int] = []  # of the answer

    @property
    def done(self) -> bool:
        return len(self.script.ended) == len(self.script.said)

    @property
    def writes(self) -> bool:
        """Whether the next token is the model's."""
        return not self.done and not self.waiting

    def next(self, likely: int) -> int:
        """The conversation's next token: what is said to the model, or its most likely one."""
        if self.done:
            return 0
        if self.waiting:
            self._append(self.waiting.pop(0), 0)
            return self.script.tokens[-1]
        self._append(likely, len(self.script.ended) + 1)
        self.written.append(likely)
        if likely in self.ends or len(self.written) == self.limit or self.complete(self.written):
            self._end(likely)
        return likely

    def _append(self, token: int, turn: int) -> None:
        self.script.tokens.append(token)
        self.script.turns.append(turn)

    def _end(self, token: int) -> None:
        self.script.ended.append(token in self.ends)
        self.written = []
        if not self.done:
            self.waiting = list(self.script.said[len(self.script.ended)])
            if self.script.ended[-1] and self.waiting[:1] == [token]:
                self.waiting.pop(0)
