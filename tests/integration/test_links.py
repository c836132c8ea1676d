"""How outputs hang together with DVC's cache, as .dvc/config has it, and under links for who wants them."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from tests.integration.conftest import run, toy

STAGES = """
stages:
  distill:
    cmd: mkdir data/student && echo scores > data/student/scores && head -c 300000 /dev/zero > data/student/weights
    outs: [data/student]
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("links") / "fresh", STAGES, {})


def disk(where: Path) -> int:
    """Bytes of data and cache, each file once, however many names it has."""
    files = [*(where / "data").rglob("*"), *(where / ".dvc/cache").rglob("*")]
    sizes = {file.stat().st_ino: file.stat().st_size for file in files if file.is_file()}
    return sum(sizes.values())


def broken(where: Path) -> list[str]:
    """Objects in the cache whose content has another hash than their name."""
    objects = [file for file in (where / ".dvc/cache/files/md5").rglob("*") if file.is_file()]
    assert objects
    names = {file: (file.parent.name + file.name).removesuffix(".dir") for file in objects}
    return [name for file, name in names.items() if hashlib.md5(file.read_bytes()).hexdigest() != name]


def test_an_edit_in_place_changes_no_cache_and_is_taken_back(fresh: Path) -> None:
    run(["dvc", "repro", "-q"], fresh)
    scores = fresh / "data/student/scores"
    with scores.open("a") as file:
        file.write("better ones\n")
    assert broken(fresh) == []
    assert "modified:           data/student" in run(["dvc", "status"], fresh).stdout
    run(["dvc", "checkout", "-q", "--force"], fresh)
    assert scores.read_text() == "scores\n"
    assert "up to date" in run(["dvc", "status"], fresh).stdout


def test_hard_links_by_choice_halve_the_disk_and_are_read_only(fresh: Path) -> None:
    """Read-only is all that guards the cache then, and root does not ask: which is why they are not the default."""
    run(["dvc", "repro", "-q"], fresh)
    before = disk(fresh)
    run(["dvc", "config", "--local", "cache.type", "hardlink,copy"], fresh)
    run(["dvc", "checkout", "-q", "--relink"], fresh)
    weights = fresh / "data/student/weights"
    assert stat.S_IMODE(weights.stat().st_mode) == 0o444
    assert weights.stat().st_nlink == 2
    assert before > 2 * 300_000
    assert disk(fresh) < 1.01 * before / 2
    if os.geteuid():
        with pytest.raises(PermissionError):
            weights.open("a")
    run(["dvc", "repro", "-q", "-f"], fresh)  # what is read-only does not stop a stage from being run again
    assert broken(fresh) == []
    run(["dvc", "unprotect", "data/student"], fresh)
    with weights.open("a") as file:
        file.write("an edit")
    assert broken(fresh) == []
