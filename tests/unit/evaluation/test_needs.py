"""What a task needs and is not installed: one line, before any work."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.evaluation import needs, selection
from pipeline.evaluation.tasks import TASKS
from tests.unit.imports import ROOT


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without langdetect, and nltk without its data."""
    there = needs.find_spec
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name == "langdetect" else there(name))
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])


@pytest.mark.usefixtures("bare")
def test_what_is_absent_is_named_with_the_commands_that_install_it(tmp_path: Path):
    (line,) = needs.missing("ifeval")
    assert line.startswith("evaluate.tasks: ifeval needs langdetect")
    assert "nltk's data punkt_tab: `pip install --constraint constraints.txt --editable '.[ifeval]'`" in line
    assert "`python -m nltk.downloader punkt_tab`" in line
    assert line.endswith("or leave ifeval out")
    with pytest.raises(ValueError, match="evaluate") as caught:
        selection.selected(["emergent"], ["ifeval"], tmp_path, 0, 0)
    assert [text.strip() for text in str(caught.value).splitlines()[1:]] == [
        line,
        f"{tmp_path}/ifeval.jsonl does not exist; leave ifeval out of evaluate.tasks, or put it there",
    ], "and what is wrong beside it"


def test_what_is_there_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nltk

    (tmp_path / "tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(needs, "find_spec", lambda name: SimpleNamespace())
    assert needs.missing("ifeval") == []
    monkeypatch.setattr(nltk.data, "path", [])
    (line,) = needs.missing("ifeval")
    assert "pip install" not in line
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    (line,) = needs.missing("ifeval")
    assert "ifeval needs langdetect, immutabledict, nltk, nltk's data punkt_tab" in line
    assert [name for name in TASKS if needs.missing(name)] == ["ifeval"]


def test_a_language_is_guessed_alike_each_time(monkeypatch: pytest.MonkeyPatch):
    factory = SimpleNamespace(seed=None)
    monkeypatch.setitem(sys.modules, "langdetect", SimpleNamespace(DetectorFactory=factory))
    needs.settle(["piqa", "gsm8k"])
    assert factory.seed is None
    needs.settle(["piqa", "ifeval"])
    assert factory.seed == 0


def test_the_packages_of_the_extra_are_pinned():
    pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {*TASKS["ifeval"].packages} <= pins
