"""What a task needs beside the project's own packages to judge its answers, and whether it is there."""

from collections.abc import Sequence
from importlib.util import find_spec

from pipeline.evaluation.tasks import TASKS

INSTALL = "pip install --constraint constraints.txt --editable '.[ifeval]'"
SENTENCES = "punkt_tab"  # nltk's data; lm-eval tries to download it, and fails hours later at a text of sentences
DOWNLOAD = f"python -m nltk.downloader {SENTENCES}"


def missing(task: str) -> list[str]:
    """A line of what a task needs and is not here, with the commands that install it; none: all is."""
    packages = TASKS[task].packages
    absent = [name for name in packages if find_spec(name) is None]
    data = [f"nltk's data {SENTENCES}"] if "nltk" in packages and not _has_sentences() else []
    if not absent + data:
        return []
    commands = [f"`{INSTALL}`"] * bool(absent) + [f"`{DOWNLOAD}` (needs a network)"] * bool(data)
    told = f"evaluate.tasks: {task} needs {', '.join(absent + data)}"
    return [f"{told}: {' and '.join(commands)}; or leave {task} out"]


def settle(tasks: Sequence[str]) -> None:
    """Let each run judge alike: langdetect draws at random, and from the same numbers once it is told so."""
    if any("langdetect" in TASKS[name].packages for name in tasks):
        import langdetect

        langdetect.DetectorFactory.seed = 0


def _has_sentences() -> bool:
    """Whether nltk finds what it splits sentences by."""
    if find_spec("nltk") is None:
        return False
    import nltk

    try:
        nltk.data.find(f"tokenizers/{SENTENCES}")
    except LookupError:
        return False
    return True
