"""`make` makes the environment: a line that says what, no warnings of pip, nothing that seems ready where it failed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = f"""#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") if [ "$PIP" = works ]; then exit 0; else exec {sys.executable} "$@"; fi ;;
    "-m pipeline.artifacts.environment") exit 0 ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile, with an interpreter that makes no true environment; one that was made earlier is out of date."""
    shutil.copy2(ROOT / "Makefile", tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/ready").touch()
    os.utime(tmp_path / ".venv/ready", (0, 0))
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "p"\nversion = "0"\n')
    return tmp_path


def install(project: Path, pip: str) -> subprocess.CompletedProcess[str]:
    """With a pip that works, or the true one, which finds nothing, and has a place configured that is not there."""
    barred = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "not-there", "PIP_DRY_RUN": "1", "PIP_CONFIG_FILE": os.devnull}
    env = {**os.environ, **barred, "PIP": pip}
    command = ["make", "PYTHON=./python", ".venv/ready"]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)


def test_an_install_is_one_line_and_done_once(project: Path):
    done = install(project, "works")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "into .venv: 2.5 GB" in line
    assert done.stderr == ""
    assert (project / ".venv/ready").stat().st_mtime > 0
    assert "up to date" in install(project, "works").stdout


def test_a_failed_install_says_why_without_pips_warnings_and_is_not_ready(project: Path):
    done = install(project, "true one")
    assert done.returncode != 0
    assert "No matching distribution found" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("WARNING")] == []
    assert not (project / ".venv/ready").exists()
