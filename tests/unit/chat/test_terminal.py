"""What is read and shown, without a terminal; tests/integration/test_chat.py has one."""

import io

import pytest

from pipeline.chat import terminal
from pipeline.chat.conversation import Conversation
from pipeline.chat.engine import Sampling
from tests.unit.chat.spoken import Echo


class Input(io.TextIOWrapper):
    """A standard input that is no terminal."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")


def talk(
    content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, engine: Echo | None = None
) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", Input(content))
    terminal.run(Conversation(engine or Echo(), Sampling(max_tokens=8)), "tiny")
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_each_line_has_an_answer_and_nothing_else_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert talk(b"one\n\n  \ntwo", monkeypatch, capsys) == (
        "user: one \nuser: one assistant: user: one user: two \n",
        "",
    )


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    out, err = talk(b"one\n/reset\ntwo\n/rest\n/help\n/usr/bin is?\n/quit\nthree\n", monkeypatch, capsys)
    assert out.splitlines() == ["user: one ", "user: two ", "user: two assistant: user: two user: /usr/bin is? "]
    first, wrong, *listed = err.splitlines()
    assert first == "[the conversation begins anew]"
    assert wrong == "[unknown command '/rest'; did you mean '/reset'? available: /help, /reset, /quit]"
    assert [line.split()[0] for line in listed] == ["[/help", "[/reset", "[/quit"]


def test_why_an_answer_ends_is_a_line_after_it_and_what_is_forgotten_one_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out, err = talk(b"a b c d e f g h i\n", monkeypatch, capsys)
    assert (out, err) == (
        "user: a b c d e f g \n",
        "[the answer ends here: it has 8 tokens; --max-tokens allows more]\n",
    )
    out, err = talk(b"a\nb c d e f\n", monkeypatch, capsys, Echo(context=9))
    assert (out, err) == (
        "user: a \nuser: b c d e f \n",
        "[the context of 9 tokens is full: the oldest turn is forgotten]\n",
    )


def test_an_error_is_a_line_and_the_next_question_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out, err = talk(b"a b c d e f g h i\nb\n", monkeypatch, capsys, Echo(context=5))
    assert out == "user: b \n"
    assert err.splitlines() == [
        "[this does not fit: it has 10 tokens, and the context holds 5 with the answer; say it shorter]"
    ]


def test_bytes_that_are_no_text_are_no_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert talk(b"a\xffb\n", monkeypatch, capsys)[0] == "user: a\ufffdb \n"


def test_a_model_without_a_template_is_told_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    err = talk(b"", monkeypatch, capsys, Echo(templated=False))[1]
    assert err == "[the model has no chat template: it goes on with what you write]\n"


def test_ctrl_c_ends_it_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    with pytest.raises(KeyboardInterrupt):
        talk(b"one\ntwo\n", monkeypatch, capsys, Echo(end=KeyboardInterrupt()))


def test_what_would_steer_a_terminal_is_left_out():
    assert terminal.printable("a\x1b[2Jb\r\n\tc\x07 \U0001f469\u200d\U0001f680\x9b") == (
        "a[2Jb\n\tc \U0001f469\u200d\U0001f680"
    )
