"""A conversation: what was said, and what of it the model is shown."""

from collections.abc import Generator

from pipeline.chat.engine import Engine, Message, Piece, Sampling, TooLong

SHARE = 4  # of the context an answer has a quarter to itself, as far as older turns can make room for it


class Conversation:
    """The turns between a user and a model, all of them kept until they no longer fit its context."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str = "") -> None:
        self.engine, self.sampling = engine, sampling
        self._system = [Message(role="system", content=system)] if system else []
        self.turns: list[Message] = []

    def reset(self) -> None:
        """Forget all that was said, but for the system's message."""
        self.turns = []

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """What the model answers, as it comes. An answer that is stopped is kept as far as it came; a question that has
        none is not.

        Raises:
            ValueError: the question alone is too long for the context.
        """
        self.turns.append(Message(role="user", content=text))
        said = ""
        try:
            for piece in self._answer():
                said += piece.text
                yield piece
        finally:
            if said:
                self.turns.append(Message(role="assistant", content=said))
            else:
                self.turns.pop()

    def _answer(self) -> Generator[Piece, None, None]:
        """The oldest turns, a question with its answer each, make room where there is none."""
        dropped = 0
        while True:
            older = len(self.turns) > 1
            room = max(1, min(self.sampling.max_tokens, self.engine.context // SHARE)) if older else 1
            pieces = self.engine.answer([*self._system, *self.turns], self.sampling, room)
            try:
                first = next(pieces, None)
            except TooLong as error:
                if not older:
                    raise ValueError(
                        f"this does not fit: it has {error.tokens} tokens, and the context holds {error.context} with "
                        "the answer; say it shorter"
                    ) from None
                del self.turns[:2]
                dropped += 1
                continue
            if dropped:
                which = "turn is" if dropped == 1 else f"{dropped} turns are"
                yield Piece("", f"the context of {self.engine.context} tokens is full: the oldest {which} forgotten")
            if first is not None:
                yield first
            yield from pieces
            return
