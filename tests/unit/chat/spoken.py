"""An engine that needs no model: a token a word, and it answers with what it was shown."""

from collections.abc import Iterator, Sequence

from pipeline.chat.engine import Message, Piece, Sampling, TooLong


class Echo:
    """An `Engine`. It says the roles and contents that it sees, word by word, and ends with `end`; it keeps the rooms
    that it was asked for."""

    runtime = "echo"

    def __init__(self, context: int = 1000, templated: bool = True, end: BaseException | None = None) -> None:
        self.context, self.templated, self.end = context, templated, end
        self.rooms: list[int] = []

    def answer(self, messages: Sequence[Message], sampling: Sampling, room: int) -> Iterator[Piece]:
        self.rooms.append(room)
        words = [word for message in messages for word in (f"{message['role']}:", *message["content"].split())]
        if len(words) + room > self.context:
            raise TooLong(len(words), self.context)
        for word in words[: sampling.max_tokens]:
            yield Piece(f"{word} ")
        if self.end is not None:
            raise self.end
        if len(words) > sampling.max_tokens:
            yield sampling.at_its_end
