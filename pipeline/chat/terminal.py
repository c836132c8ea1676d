"""The terminal: lines in, answers out as they come. Answers go to the standard output, all else to the error output."""

import re
import sys
import unicodedata
from contextlib import closing, suppress

from pipeline.chat.conversation import Conversation
from pipeline.knobs.names import unknown

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/quit": "leave, as the end of the input (Ctrl-D) does; Ctrl-C stops an answer",
}
COMMAND = re.compile(r"/[a-z]+")  # a line that is nothing else
SIGN = "> "


def run(conversation: Conversation, name: str) -> None:
    """Answer line by line until the input ends.

    Where it is no terminal there are no signs of a prompt, and Ctrl-C ends it as it ends any program.
    """
    interactive = sys.stdin.isatty()
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  # input() edits lines by it, and keeps them
        note(f"{name} in {conversation.engine.runtime}; {', '.join(COMMANDS)}")
    if not conversation.engine.templated:
        note("the model has no chat template: it goes on with what you write")
    read = prompted if interactive else plain
    while (line := read()) is not None:
        text = line.strip()
        if COMMAND.fullmatch(text):
            if text == "/quit":
                return
            command(conversation, text)
        elif text:
            answer(conversation, text, interactive)


def plain() -> str | None:
    """A line of the input; None at its end."""
    return sys.stdin.readline() or None


def prompted() -> str | None:
    """A line that is asked for; None at the end of the input, or when Ctrl-C is pressed twice."""
    for _ in range(2):
        try:
            return input(SIGN if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            note("Ctrl-C once more, or /quit, leaves")
    return None


def command(conversation: Conversation, text: str) -> None:
    """Do what a command asks for."""
    if text == "/reset":
        conversation.reset()
        note("the conversation begins anew")
    elif text == "/help":
        for known, meaning in COMMANDS.items():
            note(f"{known:8}{meaning}")
    else:
        note(unknown("command", text, COMMANDS))


def answer(conversation: Conversation, text: str, interactive: bool) -> None:
    """Print an answer as it comes, and a line of why it ended, where the model did not end it."""
    clean = printable if sys.stdout.isatty() else str
    begun, end = False, ""
    with closing(conversation.ask(text)) as pieces:
        try:
            for piece in pieces:
                if piece.note and not begun:
                    note(piece.note)
                begun, end = begun or bool(piece.text), piece.note if begun else ""
                print(clean(piece.text), end="", flush=True)
            print(flush=True)
        except ValueError as error:
            end = str(error)
        except KeyboardInterrupt:
            if not interactive:
                raise
            print(flush=True)
            end = "stopped"
    if end:
        note(end)


def printable(text: str) -> str:
    """A text without the characters that would steer the terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")


def note(text: str) -> None:
    """Tell the user something that the model did not say."""
    print(f"[{text}]", file=sys.stderr, flush=True)
