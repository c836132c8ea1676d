"""What a runtime that has opened an export offers, whichever it is."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

Messages = list[dict[str, str]]


class Asked(NamedTuple):
    """What a runtime is opened for.

    context: the longest text in tokens. sequences: the most that run at once. threads: to compute with.
    """

    context: int
    sequences: int
    threads: int


class Predictions(NamedTuple):
    """What a runtime says of the tokens that follow those of one sequence: position p is about the token after p.

    Attributes:
        positions: int64 [n], in rising order. values: float32 [n, vocabulary] logits, or, where `ids` says of which
            tokens, float32 [n, k] log-probabilities of the likeliest, in falling order. ids: int64 [n, k].
    """

    positions: Tensor
    values: Tensor
    ids: Tensor | None = None


class Speed(NamedTuple):
    """Tokens a second of one sequence: of a prompt, and of what is written after it."""

    prompt: float
    decode: float


def timed(write: Callable[[Tensor, int], list[int]], prompt: Tensor, count: int) -> Speed:
    """The speed of a runtime that does not tell it, by the time that one token and `count` more take it.

    write: so many tokens after a prompt, int64 [length], through a text's end.
    """
    began = time.perf_counter()
    write(prompt, 1)
    first = time.perf_counter() - began
    began = time.perf_counter()
    write(prompt, 1 + count)
    more = time.perf_counter() - began
    return Speed(len(prompt) / first, count / (more - first if more > first else more))


def timed_alone(continuations: Callable[[Tensor, int], list[list[int]]], prompt: Tensor, count: int) -> Speed:
    """The same of a runtime that continues some prompts at once, of one alone."""
    return timed(lambda text, tokens: continuations(text[None], tokens)[0], prompt, count)


class Opened(Protocol):
    """An export that a runtime has opened.

    vocabulary: tokens that it tells of. context: the longest text that it says the file is for; None if it does not.
    """

    vocabulary: int
    context: int | None

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        """Of each of some sequences, int64 [sequences, length], one after the other."""

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        """The `count` tokens after each prompt of int64 [prompts, length], the likeliest at each step.

        A runtime that stops at the end of a text gives fewer.
        """

    def speed(self, prompt: Tensor, count: int) -> Speed:
        """Of one prompt, int64 [length], and of `count` tokens after it."""

    def ids(self, text: str) -> list[int] | None:
        """A text's tokens by the tokenizer that comes with the export, special ones included; None if it has none."""

    def chat(self, messages: Messages) -> str | None:
        """A conversation in the export's chat template, with the opening of the answer; None if it has none."""

    def close(self) -> None:
        """Give back memory and whatever else is held."""


class Open(Protocol):
    """Opens an export's folder.

    Raises:
        ValueError: it holds no such file, or one that the runtime does not load; in one line.
    """

    def __call__(self, folder: Path, asked: Asked) -> Opened: ...


def whole(tokens: Tensor) -> list[list[int]]:
    """int64 [sequences, length] as lists."""
    lists: list[list[int]] = tokens.tolist()
    return lists


def listed(encoded: Any) -> list[int]:
    """What a tokenizer of transformers makes of a text."""
    ids: Sequence[int] = encoded["input_ids"]
    return [int(number) for number in ids]
