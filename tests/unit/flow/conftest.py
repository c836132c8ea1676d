"""A small DVC project in Git, as the planning of sweeps and their workspaces need one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DVC_YAML = """
stages:
  corpus:
    cmd: python make.py > corpus
    params: [seed]
    deps: [make.py]
    outs: [corpus]
  distill:
    cmd: cp corpus student/log.csv
    params: [distill]
    deps: [corpus, train.py]
    outs: [student]
  evaluate:
    foreach: {student: student}
    do:
      cmd: cp ${item}/log.csv scores/${key}.json
      deps: ["${item}", texts]
      outs: ["scores/${key}.json"]
  report:
    cmd: cp README page
    deps: [README, scores/student.json]
    outs: [page]
"""


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True)
    return done.stdout


def commit(where: Path) -> str:
    """Commit all that is there; the commit."""
    git(where, "add", "-A")
    git(where, "commit", "--quiet", "--allow-empty", "-m", "state")
    return git(where, "rev-parse", "HEAD").strip()


@pytest.fixture(scope="session")
def fresh_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("project")
    git(where, "init", "--quiet")
    git(where, "config", "user.name", "Test")
    git(where, "config", "user.email", "test@example.org")
    dvc = [sys.executable, "-m", "dvc", "init", "--quiet"]
    subprocess.run(dvc, cwd=where, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=True)
    (where / "dvc.yaml").write_text(DVC_YAML)
    (where / "params.yaml").write_text("seed: 0\ndistill:\n  freeze: ov   # which\n  seed: 0\n")
    for name in ("make.py", "train.py", "README", "texts/a", "texts/b"):
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_text(f"{name}\n")
    (where / ".gitignore").write_text("/runs/\n")
    (where / ".dvcignore").write_text("runs\n")
    commit(where)
    return where


@pytest.fixture
def project(fresh_project: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fresh_project, tmp_path / "project")
