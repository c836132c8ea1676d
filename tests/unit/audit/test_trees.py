"""Files at a revision, by Git, and DVC's hashes of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.artifacts import dvc_hashes
from pipeline.audit import trees
from tests.unit.flow.conftest import commit, git

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    for key in ("user.name", "user.email"):
        git(tmp_path, "config", key, "test@example.org")
    for name, text in (("a", "one\n"), ("texts/b", "two\n"), ("texts/deep/c", "three"), ("texts/ä", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    commit(tmp_path)
    return tmp_path


def test_a_commit_holds_what_it_held(project: Path):
    (project / "a").write_text("changed")
    (project / "texts/b").unlink()
    with trees.Git(project) as repository:
        before, now = trees.Commit(repository, "HEAD"), trees.WorkingTree(project)
        assert (before.read("a"), now.read("a")) == (b"one\n", b"changed")
        assert before.files("texts") == ["texts/b", "texts/deep/c", "texts/ä"]
        assert now.files("texts") == ["texts/deep/c", "texts/ä"]
        assert before.read("texts/ä") == b""
        assert before.read("nowhere") is None
        assert before.read("texts") is None
        with pytest.raises(ValueError, match="single revision"):
            repository.run("rev-parse", "--verify", "nonsense")


def test_hashes_are_dvcs_own(project: Path):
    """DVC adds a file and a folder; what it notes of them is what a commit and the working tree come to."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=project, check=True)
    subprocess.run(["git", "rm", "-rq", "--cached", "a", "texts"], cwd=project, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "a", "texts"], cwd=project, check=True)
    noted = {name: yaml.safe_load((project / f"{name}.dvc").read_text())["outs"][0]["md5"] for name in ("a", "texts")}
    with trees.Git(project) as repository:
        for tree in (trees.Commit(repository, "HEAD"), trees.WorkingTree(project)):
            assert {name: trees.md5(tree, name) for name in noted} == noted
            assert trees.md5(tree, "nowhere") is None
    listing = project / ".dvc/cache/files/md5" / noted["texts"][:2] / noted["texts"][2:]
    entries = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}
    assert dvc_hashes.folder_md5(entries.items()) == noted["texts"]
    assert {name: dvc_hashes.path_md5(project / name) for name in noted} == noted
    assert dvc_hashes.path_md5(project / "nowhere") == ""
    files = {"a": noted["a"], **{f"texts/{path}": md5 for path, md5 in entries.items()}, "text": "1", "textsb": "2"}
    assert dvc_hashes.of_deps(["a", "texts", "nowhere"], files) == noted


def test_what_python_compiled_is_no_part_of_a_folder(project: Path):
    """.dvcignore keeps it out of DVC's hash, and Git does not have it."""
    before = dvc_hashes.path_md5(project / "texts")
    (project / "texts/__pycache__").mkdir()
    (project / "texts/__pycache__/b.pyc").write_bytes(b"compiled")
    assert dvc_hashes.path_md5(project / "texts") == before
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().splitlines()
