"""The true pipeline on a tiny random model: a copy of this tree, with knobs to match, run by `dvc repro`."""

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from filelock import FileLock

import stages.run
from pipeline.artifacts import environment as environment_of_stages
from tests import tiny

ROOT = Path(__file__).parents[2]
Stage = Callable[..., str]
RESULTS = ("dvc.lock", "data/report/summary.json", "data/report/sizes.svg")  # that are in Git
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of a make that started the tests, which is none of the project's
KNOBS = {
    "teacher": {"source": "path", "sha256": ""},
    "synthesize": {"sequences": 60, "held_out": 6, "length": 48, "batch": 6, "dtype": "float32"},
    "calibrate": {"sequences": 16, "batch": 4},
    "analyze": {"sequences": 4, "batch": 2, "sensitivity_sequences": 1},
    "distill": {"steps": 40, "batch": 8, "lr": 2e-3, "checkpoint_every": 4},
    "prove": {"sequences": 2, "prompts": 4, "tokens": 8},
    "references": {"long": 300, "dialogues": 3, "tokens": 8},
    "evaluate": {
        "instructions": 4,
        "instruction_tokens": 8,
        "limit": 3,
        "windows": 3,
        "window": 64,
        "groups": ["basic"],
        "tasks": ["piqa", "arc_easy"],
    },
}


BEGINNING = ("test_audit", "test_deployment", "test_bad_input", "test_flow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two test processes the first makes the run that most files need; the second begins with some that do not."""
    places = {name: place for place, name in enumerate(BEGINNING)}
    items.sort(key=lambda item: places.get(item.path.stem, len(BEGINNING)))


def environment() -> dict[str, str]:
    """Ours, with this interpreter's folder first in PATH, the tree importable, and no network wanted."""
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CI": "1", "HF_HUB_OFFLINE": "1"}
    outer = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return {**outer, **own, "GIT_CONFIG_GLOBAL": os.devnull, "PYTHONPATH": ""}


def run(command: list[str], cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a checkout; with `check`, fail the test with its output if it fails."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{command} exited {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def checkout(where: Path, teacher: Path) -> Path:
    """A git checkout with this tree's files, dvc.lock and results left out, and tiny knobs."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        result = name in RESULTS or re.match("sweeps/.*/", name)
        if (ROOT / name).is_file() and not result:
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, where / name)
    environment_of_stages.pin_python(where / "versions.yaml")
    change_params(where, {**KNOBS, "teacher": {**KNOBS["teacher"], "path": str(teacher)}})
    for command in (["init", "-q"], ["config", "user.email", "test@example.org"], ["config", "user.name", "Test"]):
        run(["git", *command], where)
    commit(where)
    return where


def toy(where: Path, stages: str, knobs: dict[str, Any]) -> Path:
    """A project with this one's DVC settings, whose stages take no time; nothing has run, and it is committed."""
    where.mkdir(parents=True)
    for command in (["init", "-q", "-b", "main"], ["config", "user.email", "t@e.org"], ["config", "user.name", "T"]):
        run(["git", *command], where)
    run(["dvc", "init", "-q"], where)
    shutil.copy2(ROOT / ".dvc/config", where / ".dvc/config")
    (where / "dvc.yaml").write_text(stages)
    (where / "params.yaml").write_text(yaml.safe_dump(knobs))
    (where / ".gitignore").write_text("/ran\n")
    (where / "data").mkdir()
    commit(where)
    return where


def change_params(where: Path, sections: dict[str, Any]) -> None:
    """Set knobs of some sections in a checkout's params.yaml, or a whole one, where it is no section (seed, scheme)."""
    params = yaml.safe_load((where / "params.yaml").read_text())
    for section, knobs in sections.items():
        if section in ("seed", "scheme"):
            params[section] = knobs
        else:
            params[section].update(knobs)
    (where / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def commit(where: Path) -> None:
    """Commit everything that git does not ignore."""
    run(["git", "add", "-A"], where)
    run(["git", "commit", "-q", "-m", "state"], where)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes have in common; what lies there is read-only."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def tiny_teacher(shared: Path) -> Path:
    folder = shared / "teacher"
    with FileLock(shared / "teacher.lock"):
        return folder if folder.exists() else tiny.save_whole(folder)


@pytest.fixture(scope="session")
def pipeline(shared: Path, tiny_teacher: Path) -> Path:
    """A checkout after one uninterrupted `dvc repro`, its results committed."""
    where, done = shared / "pipeline", shared / "pipeline.done"
    with FileLock(shared / "pipeline.lock"):
        if not done.exists():
            where.mkdir()
            checkout(where, tiny_teacher)
            run(["dvc", "repro"], where)
            commit(where)
            done.touch()
    return where


def enter_stage(where: Path, stage: str, arguments: list[str]) -> None:
    """Run a stage in this process, as a process of its own needs seconds to import what it needs.

    What it is refused with there, test_bad_input.py compares with this.
    """
    with (
        chdir(where),
        patch.dict(os.environ, environment()),
        patch.object(sys, "argv", [f"stages.{stage}", *arguments]),
    ):
        stages.run.main(stage, importlib.import_module(f"stages.{stage}").work)


def run_stage(desk: Path, stage: str, /, **paths: str) -> subprocess.CompletedProcess[str]:
    """Run a stage in this process, and keep what it says."""
    arguments, out, err, code = options(paths), io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            enter_stage(desk, stage, arguments)
        except SystemExit as ended:
            code = 1
            print(ended.code, file=err)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def run_stage_alone(desk: Path, stage: str, /, **paths: str) -> subprocess.CompletedProcess[str]:
    """Run a stage in a process of its own, as DVC does."""
    command = [sys.executable, "-m", f"stages.{stage}", *options(paths)]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, check=False)


def options(paths: dict[str, str]) -> list[str]:
    """Paths as a stage's command has them."""
    return [word for name, path in paths.items() for word in (f"--{name}", path)]


@pytest.fixture
def desk(pipeline: Path, tmp_path: Path) -> Path:
    """A folder to run stages in: the pipeline's knobs and pins, and its artifacts to break."""
    for name in ("params.yaml", "versions.yaml"):
        shutil.copy2(pipeline / name, tmp_path)
    shutil.copytree(pipeline / "data", tmp_path / "data", symlinks=True)
    return tmp_path


@pytest.fixture
def refused(desk: Path) -> Stage:
    """Run a stage that must fail after some knobs are set; gives its message, with `out` proven untouched."""

    def run(stage: str, /, knobs: dict | None = None, **paths: str) -> str:
        for name, value in (knobs or {}).items():
            section, _, knob = name.partition(".")
            change_params(desk, {section: {knob: value} if knob else value})
        done = run_stage(desk, stage, **paths, out="made/out")
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert not list(desk.glob("made/*"))
        return done.stderr

    return run
