"""Workspaces of a sweep, beside a user's tree that they must leave alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.flow import workspaces
from tests.unit.flow.conftest import commit, git


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def test_a_workspace_holds_the_commit_and_not_the_users_changes(project: Path):
    (project / "train.py").write_text("half an idea\n")
    with workspaces.opened("s") as desk:
        where = desk.make("a")
        assert (where / "train.py").read_text() == "train.py\n"
        assert git(where, "rev-parse", "HEAD") == git(project, "rev-parse", "HEAD")
        assert git(where, "config", "user.name").strip() == "Test"
        desk.leave("a", done=True)
        assert not where.exists()
    assert not (project / workspaces.FOLDER / "s").exists()
    assert (project / "train.py").read_text() == "half an idea\n"


def test_a_workspace_shares_the_cache_and_keeps_the_local_configuration(project: Path):
    (project / ".dvc/config.local").write_text(
        "['remote \"store\"']\n    url = /somewhere\n[core]\n    remote = store\n"
    )
    with workspaces.opened("s") as desk:
        where = desk.make("a")

        def setting(name: str) -> str:
            command = [sys.executable, "-m", "dvc", "config", name]
            return subprocess.run(command, cwd=where, capture_output=True, text=True, check=True).stdout.strip()

        assert setting("cache.dir") == str(project / ".dvc/cache")
        assert setting("cache.type") == workspaces.LINKS
        assert setting("core.remote") == "store"
        assert git(where, "status", "--porcelain") == ""


def test_checkpoints_outlive_what_is_not_done(project: Path):
    with workspaces.opened("s") as desk:
        where = desk.make("a")
        (where / "runs/scratch/distill").mkdir(parents=True)
        (where / "runs/scratch/distill/step-4").write_text("half")
        desk.leave("a", done=False)
        assert [file.name for file in where.rglob("*") if file.is_file()] == ["step-4"]
        again = desk.make("a")
        assert (again / "runs/scratch/distill/step-4").read_text() == "half"
        assert (again / "train.py").is_file()
        desk.leave("a", done=True)
        assert not where.exists()
        desk.make("b")
        desk.leave("b", done=False)
        assert [*desk.folder.iterdir()] == [], "no checkpoints, nothing to keep"


def test_what_a_kill_left_is_made_anew_or_removed(project: Path):
    with workspaces.opened("s") as desk:
        (desk.make("a") / "train.py").write_text("in the middle of something\n")
        (desk.folder / "a/.git/index.lock").touch()
        desk.make("old")
        desk.keep_only(["a"])
        assert [entry.name for entry in desk.folder.iterdir()] == ["a"]
        assert (desk.make("a") / "train.py").read_text() == "train.py\n"


def test_an_experiment_comes_home_under_its_name(project: Path):
    with workspaces.opened("s") as desk:
        where = desk.make("a")
        (where / "params.yaml").write_text("seed: 1\n")
        made = commit(where)
        git(where, "update-ref", "refs/exps/ab/cdef/a", made)
        git(where, "update-ref", "refs/exps/exec/EXEC_HEAD", made)
        desk.collect("a")
        assert desk.experiments() == {"a": made}
        assert git(project, "show", f"{made}:params.yaml") == "seed: 1\n"
    assert git(project, "status", "--porcelain") == ""
    assert not (project / ".git/FETCH_HEAD").exists()


def test_two_processes_do_not_run_the_same_sweep(project: Path):
    with workspaces.opened("s"), pytest.raises(ValueError, match="the sweep s is running"), workspaces.opened("s"):
        pass
    with workspaces.opened("s"), workspaces.opened("other"):
        pass


def test_changes_are_told_by_file_where_they_matter(project: Path):
    (project / "train.py").write_text("changed\n")
    (project / "texts/c").write_text("new\n")
    (project / "README").write_text("changed\n")
    (project / "make.py").unlink()
    assert sorted(workspaces.differs(project, ["train.py", "make.py", "texts"])) == ["make.py", "texts/c", "train.py"]


def test_a_project_without_a_commit_or_no_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not the root of a DVC project"), workspaces.opened("s"):
        pass
    git(tmp_path, "init", "--quiet")
    os.mkdir(tmp_path / ".dvc")
    with pytest.raises(ValueError, match="no commit yet"), workspaces.opened("s"):
        pass
