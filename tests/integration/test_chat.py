"""`python -m pipeline.chat` on what a run of the pipeline made, and the loop in a true terminal."""

import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, environment
from tests.integration.stopping import heed_signals

FOLDER = "data/int4/student/gguf"
SLOW = """
import sys, time
from pipeline.chat import terminal
from pipeline.chat.conversation import Conversation
from pipeline.chat.engine import Piece, Sampling
from tests.unit.chat.spoken import Echo

class Slow(Echo):
    def answer(self, messages, sampling, room):
        yield from super().answer(messages, sampling, room)
        if messages[-1]["content"] == "wait":
            while True:
                yield Piece("more ")
                time.sleep(0.01)

terminal.run(Conversation(Slow(), Sampling()), "slow")
print("left")
"""


def chat(where: Path, *options: str, said: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.chat", *options]
    return subprocess.run(
        command, cwd=where, env=environment(), input=said, capture_output=True, text=True, check=False
    )


def test_lines_in_answers_out_and_nothing_of_llama_cpps_log(pipeline: Path) -> None:
    done = chat(pipeline, FOLDER, "--max-tokens", "8", "--threads", "1", said="the time\n/reset\nthe time\n")
    assert done.returncode == 0, done.stderr
    length = len(done.stdout) // 2
    assert done.stdout[:length] == done.stdout[length:] != ""
    notes = done.stderr.splitlines()
    assert notes[0] == "[the model has no chat template: it goes on with what you write]"
    assert set(notes[1:]) == {
        "[the answer ends here: it has 8 tokens; --max-tokens allows more]",
        "[the conversation begins anew]",
    }


def test_a_conversation_that_no_longer_fits_goes_on(pipeline: Path) -> None:
    done = chat(pipeline, FOLDER, "--max-tokens", "40", "--context", "256", said="the time is up\n" * 8)
    assert done.returncode == 0, done.stderr
    assert "[the context of 256 tokens is full: the oldest turn is forgotten]" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("data/teacher",), "holds 'teacher' version 1, but 'int4'"),
        (("data/int4/student",), "it holds data/int4/student/compressed-tensors, data/int4/student/gguf"),
        (("data/int4/student/compressed-tensors",), f"beside it lies {FOLDER}"),
        (("nowhere",), "nowhere is no int4 artifact"),
        ((FOLDER, "--context", "4096"), "--context 4096 is longer than the model's own context, 512 tokens"),
        ((FOLDER, "--top-p", "2"), "--top-p must be over 0 and at most 1, got 2.0"),
    ],
)
def test_what_cannot_be_talked_to_is_told_in_a_line(pipeline: Path, options: tuple[str, ...], said: str) -> None:
    done = chat(pipeline, *options, said="one\n")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("chat: ")
    assert said in line


class Terminal:
    """A program in a terminal of its own, which is typed into."""

    def __init__(self, command: list[str], where: Path) -> None:
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            heed_signals()
            os.chdir(where)
            os.execvpe(command[0], command, {**environment(), "PYTHONPATH": str(ROOT), "TERM": "dumb"})
        self.shown, self._read = "", 0

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until a text is shown, after the one that was waited for before."""
        until = time.monotonic() + seconds
        while text not in self.shown[self._read :]:
            assert time.monotonic() < until, f"{text!r} does not come: {self.shown!r}"
            if select.select([self._end], [], [], 0.1)[0]:
                self.shown += os.read(self._end, 4096).decode(errors="replace")
        self._read = self.shown.index(text, self._read) + len(text)

    def wait_for_prompt(self) -> None:
        """Wait until it asks for a line. Between that and its reading readline hears no Ctrl-C: see `press`."""
        self.wait_for("> ")

    def press(self, key: str, text: str) -> None:
        """Press a key, again where nobody heard it within some seconds, until a text is shown."""
        for _ in range(5):
            self.type(key)
            try:
                return self.wait_for(text, 5)
            except AssertionError:
                continue
        return self.wait_for(text, 0)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def ended(self, key: str = "", seconds: float = 60) -> int:
        """Its exit status, when it has ended, by a key that is pressed until then; what it has shown is read."""
        until, pressed = time.monotonic() + seconds, -math.inf
        while True:
            if key and time.monotonic() > pressed + 5:
                self.type(key)
                pressed = time.monotonic()
            try:
                if select.select([self._end], [], [], 0.1)[0]:
                    self.shown += os.read(self._end, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            assert time.monotonic() < until, f"it does not end: {self.shown!r}"


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Those that a test opens; what it leaves running is ended."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        try:
            if os.waitpid(terminal.pid, os.WNOHANG) == (0, 0):
                os.kill(terminal.pid, signal.SIGKILL)
                os.waitpid(terminal.pid, 0)
        except ChildProcessError:
            pass


def test_in_a_terminal_ctrl_c_stops_the_answer_and_twice_at_the_prompt_leaves(terminals: list[Terminal]) -> None:
    terminal = Terminal([sys.executable, "-c", SLOW], ROOT)
    terminals.append(terminal)
    terminal.wait_for_prompt()
    assert "[slow in echo; /help, /reset, /quit]" in terminal.shown
    terminal.type("wait\n")
    terminal.wait_for("more more")
    terminal.type("\x03")
    terminal.wait_for("[stopped]")
    terminal.wait_for_prompt()
    terminal.type("and on\n")
    terminal.wait_for("user: and on")
    assert "assistant: user: wait more more" in terminal.shown
    terminal.wait_for_prompt()
    terminal.press("\x03", "[Ctrl-C once more, or /quit, leaves]")
    terminal.wait_for_prompt()
    assert terminal.ended("\x03") == 0
    assert "left" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_in_a_terminal_one_ctrl_c_at_the_prompt_does_not_leave_and_ctrl_d_does(terminals: list[Terminal]) -> None:
    terminal = Terminal([sys.executable, "-c", SLOW], ROOT)
    terminals.append(terminal)
    terminal.wait_for_prompt()
    for _ in range(2):
        terminal.press("\x03", "leaves]")
        terminal.wait_for_prompt()
        terminal.type("hello\n")
        terminal.wait_for("user: hello")
        terminal.wait_for_prompt()
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert "left" in terminal.shown


def test_in_a_terminal_the_true_model_answers(pipeline: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(
        [sys.executable, "-m", "pipeline.chat", FOLDER, "--max-tokens", "5", "--threads", "1"], pipeline
    )
    terminals.append(terminal)
    terminal.wait_for_prompt()
    assert f"[{FOLDER} in llama.cpp; " in terminal.shown
    terminal.type("the time\n")
    terminal.wait_for("it has 5 tokens")
    terminal.wait_for_prompt()
    terminal.type("/quit\n")
    assert terminal.ended() == 0
    assert "\x1b" not in terminal.shown.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
