"""What a stage shows of a long work."""

import pytest

from pipeline.artifacts import progress


def test_the_bar_counts_from_where_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("CI", raising=False)
    with progress.bar("distill", 8, " step", initial=3) as bar:
        bar.update(5)
        assert bar.n == bar.total == 8
    assert "distill" in capsys.readouterr().err


def test_continuous_integration_sees_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("CI", "true")
    with progress.bar("distill", 8, " step") as bar:
        bar.update(8)
    assert capsys.readouterr().err == ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, which stands still unless it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("shown", [True, False], ids=["bar", "no bar"])
def test_a_long_work_says_once_how_long_it_is_from_a_measured_piece(
    shown: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("CI", raising=False) if shown else monkeypatch.setenv("CI", "1")
    with progress.bar("synthesize", 1000, " tok", initial=100) as bar:
        for seconds, tokens in ((30, 1), (2, 4), (2, 6), (1, 30)):  # the first tells nothing of the others
            clock[0] += seconds
            bar.update(tokens)
    said = capsys.readouterr()
    assert said.err.count("synthesize: about 6 min here, measured on the first 34 s of it\n") == 1
    assert said.err.count("measured") == 1
    assert said.out == "", "which others may read"


def test_a_piece_that_takes_long_itself_is_enough(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with progress.bar("calibrate gptq", 30, " layer") as bar:
        clock[0] += 600
        bar.update()
    assert "calibrate gptq: about 5.0 h here, measured on the first 10 min of it\n" in capsys.readouterr().err


def test_a_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with progress.bar("targets", 100, " tok") as bar:
        for _ in range(4):
            clock[0] += 4
            bar.update(25)
    assert "measured" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (5900, "98 min"), (6100, "1.7 h")]
)
def test_lengths_of_time_are_said_in_the_unit_that_fits(seconds: float, text: str):
    assert progress.duration(seconds) == text
