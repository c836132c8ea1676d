"""What a chat asks of a runtime, whichever it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict


class Message(TypedDict):
    """A turn of a conversation; role: system, user or assistant."""

    role: str
    content: str


class Piece(NamedTuple):
    """Some of an answer, and what the user has to know of it: that it was cut off, say."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0: the most likely one. max_tokens: of an answer."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512

    @property
    def at_its_end(self) -> Piece:
        """What follows an answer that has as many tokens as it may have."""
        return Piece("", f"the answer ends here: it has {self.max_tokens} tokens; --max-tokens allows more")


class TooLong(Exception):
    """A conversation that leaves no room for an answer: its tokens, and how many the context holds."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(tokens, context)
        self.tokens, self.context = tokens, context


class Engine(Protocol):
    """A model that is open in a runtime.

    runtime: its name. context: tokens of a conversation and its answer together. templated: whether the model has a
    chat template; where it has none, it goes on with the text.
    """

    runtime: str
    context: int
    templated: bool

    def answer(self, messages: Sequence[Message], sampling: Sampling, room: int) -> Iterator[Piece]:
        """What the model says to a conversation, piece by piece as it comes; closing the iterator stops it.

        Raises:
            TooLong: the conversation leaves less than `room` tokens, before the first piece.
        """


def full(context: int) -> Piece:
    """What follows an answer that has filled the context."""
    return Piece("", f"the answer ends here: the context of {context} tokens is full")


def text_of(messages: Sequence[Message]) -> str:
    """A conversation for a model without a chat template: what was said in its order, a new line before each message
    of the user."""
    text = ""
    for message in messages:
        text += "\n" if text and message["role"] == "user" else ""
        text += message["content"]
    return text


def context_of(asked: int, holds: int, usual: int = 8192) -> int:
    """The context to open: what is asked for; where nothing is (0), what the file holds, and not more than is usual.

    Raises:
        ValueError: the file holds less than is asked for.
    """
    if asked > holds:
        raise ValueError(f"--context {asked} is longer than the model's own context, {holds} tokens")
    return asked or min(holds, usual)
