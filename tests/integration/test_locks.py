"""Two runs of DVC at once, a killed one and torn lock files, at the true command line, with the project's settings."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import commit, environment, run, toy

STAGES = """
stages:
  synthesize:
    cmd: echo corpus > data/corpus
    outs: [data/corpus]
  distill:
    cmd: echo $$ >> ran && while test -e hold; do sleep 0.1; done && cp data/corpus data/student
    deps: [data/corpus]
    outs: [data/student]
  report:
    cmd: cp data/corpus data/page
    deps: [data/corpus]
    outs: [data/page]
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stage `distill` goes on as long as there is a file `hold`; nothing has run but synthesize."""
    where = toy(tmp_path_factory.mktemp("locks") / "fresh", STAGES, {})
    (where / ".gitignore").write_text("/ran\n/hold\n")
    run(["dvc", "repro", "-q", "synthesize"], where)
    commit(where)
    (where / "hold").touch()
    return where


@pytest.fixture
def project(fresh: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fresh, tmp_path / "project")


def start(where: Path) -> subprocess.Popen[str]:
    """`dvc repro distill`, in the midst of its stage."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(["dvc", "repro", "distill"], cwd=where, env=environment(), text=True, **pipes)
    until(lambda: bool(stages(where)))
    return process


def stages(where: Path) -> list[int]:
    """The processes of `distill`, one a time that it was run."""
    return [int(line) for line in (where / "ran").read_text().split()] if (where / "ran").exists() else []


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "a minute has passed"
        time.sleep(0.05)


def test_a_second_run_is_turned_away_but_from_a_stage_that_only_reads_the_same(project: Path) -> None:
    first = start(project)
    second = run(["dvc", "repro", "distill"], project, check=False)
    assert second.returncode == 255
    line, blocker, *_ = second.stderr.splitlines()
    assert line.startswith("ERROR: failed to reproduce 'synthesize': "), "whose output the first one reads"
    assert line.endswith("is busy, it is being blocked by:")
    assert f"(PID {first.pid}): " in blocker
    run(["dvc", "repro", "-q", "--single-item", "report"], project)
    assert (project / "data/page").exists()
    (project / "hold").unlink()
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert len(stages(project)) == 1
    assert "up to date" in run(["dvc", "status"], project).stdout, "each kept its part of dvc.lock"


def test_after_a_kill_the_lock_is_taken_over_but_the_stage_must_be_ended_too(project: Path) -> None:
    first = start(project)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    (orphan,) = stages(project)
    assert psutil.pid_exists(orphan), "what DVC had started goes on without it"
    os.kill(orphan, signal.SIGKILL)
    (project / "hold").unlink()
    done = run(["dvc", "repro"], project)
    assert "had been killed. Auto removed it from the lock file" in done.stderr
    assert len(stages(project)) == 2
    assert (project / "data/student").read_text() == "corpus\n"
    assert json.loads((project / ".dvc/tmp/rwlock").read_text()) == {}
    assert "up to date" in run(["dvc", "repro"], project).stdout


@pytest.mark.parametrize("torn", ["", '{"write": {"/som'], ids=["empty", "half"])
def test_a_half_written_rwlock_stops_dvc_until_it_is_removed(project: Path, torn: str) -> None:
    (project / "hold").unlink()
    (project / ".dvc/tmp/rwlock").write_text(torn)
    done = run(["dvc", "repro"], project, check=False)
    assert done.returncode == 255
    (line,) = done.stderr.splitlines()
    assert "Unable to read RWLock-file '.dvc/tmp/rwlock'" in line
    assert stages(project) == []
    (project / ".dvc/tmp/rwlock").unlink()
    run(["dvc", "repro", "-q"], project)
    assert "up to date" in run(["dvc", "status"], project).stdout


def test_a_half_written_dvc_lock_is_refused_or_costs_no_work(project: Path) -> None:
    """What comes before the tear holds; what comes after it, the run cache has."""
    (project / "hold").unlink()
    run(["dvc", "repro", "-q"], project)
    commit(project)
    whole = (project / "dvc.lock").read_text()
    middle = whole.index("  distill:")
    (project / "dvc.lock").write_text(whole[: whole.index("path", middle) + 2])
    done = run(["dvc", "repro"], project, check=False)
    assert done.returncode == 255
    assert "dvc.lock" in done.stderr
    run(["git", "checkout", "-q", "dvc.lock"], project)
    assert "up to date" in run(["dvc", "repro"], project).stdout
    (project / "dvc.lock").write_text(whole[:middle])
    done = run(["dvc", "repro"], project)
    assert "Stage 'distill' is cached - skipping run, checking out outputs" in done.stdout
    assert (project / "dvc.lock").read_text() == whole
    assert len(stages(project)) == 1
