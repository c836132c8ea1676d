"""Sweeps at the true command line: their course on a DVC project whose stages take no time, then the true stages."""

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import ROOT, commit, run
from tests.integration.stopping import stop_flow
from tests.integration.toy_sweep import (
    CODE,
    DEFINITION,
    STAGES,
    SWEEP,
    define,
    finished,
    own_environment,
    ran,
    rows,
    sweep,
    untouched,
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the true params.yaml, whose stages are STAGES, and a sweep."""
    where = tmp_path_factory.mktemp("fresh")
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "T"],
        ["git", "config", "user.email", "t@e.org"],
    ):
        run(command, where)
    run(["dvc", "init", "-q"], where)
    knobs = yaml.safe_load((ROOT / "params.yaml").read_text())
    knobs["evaluate"]["source"] = "hub"  # so that no folder of benchmarks is asked for
    log = where.parent / "log/ran"
    (where / "params.yaml").write_text(yaml.safe_dump({**knobs}, sort_keys=False))
    (where / "dvc.yaml").write_text(STAGES.replace("${log}", str(log)))
    (where / "code.py").write_text(CODE)
    (where / ".gitignore").write_text("/runs/\n__pycache__/\n")
    (where / ".dvcignore").write_text("runs\n")
    define(where, DEFINITION)
    log.parent.mkdir()
    log.touch()
    commit(where)
    return where


def test_everything_that_is_wrong_is_said_at_once_before_any_work(fresh: Path, tmp_path: Path) -> None:
    project = shutil.copytree(fresh, tmp_path / "project")
    bad = {"distill.freeze": ["none", "vo"], "distill.step": [3]}
    define(project, {**DEFINITION, "grid": bad, "seads": [1], "target": 3})
    done = sweep(project)
    assert done.returncode == 1
    assert done.stderr.startswith("flow: sweeps/tiny.yaml has 4 problem(s):")
    assert "unknown entry 'seads'; did you mean 'seeds'?" in done.stderr
    assert "target: expected text, got 3" in done.stderr
    assert "unknown knob 'distill.step'; did you mean 'distill.steps'?" in done.stderr
    assert "distill.freeze: unknown freeze policy 'vo'; did you mean 'ov'?" in done.stderr
    define(project, DEFINITION)
    (project / "code.py").write_text(CODE + "# an idea\n")
    done = sweep(project)
    assert done.stderr.startswith("flow: the points run what HEAD holds")
    assert done.stderr.splitlines()[1:] == ["  code.py"]
    assert ran(fresh) == []
    assert not (project / "sweeps/tiny").exists()
    assert not (project / "runs/sweeps/tiny").exists()


def test_a_sweep_is_stopped_goes_on_fails_in_part_and_repeats_nothing(fresh: Path, tmp_path: Path) -> None:
    """One story, as each start of Prefect's server takes seconds: what each run leaves is what the next one finds."""
    project = fresh
    stop_when_asleep(project, "--jobs", "2")
    assert untouched(project)
    assert finished(project) == {("none", seed) for seed in "01"}
    left = {file.name for file in (project / "runs/sweeps/tiny").rglob("*") if file.is_file()}
    assert left == {"half"}, "of the workspaces, the checkpoints of the two that were stopped"

    done = sweep(project, "--jobs", "2")
    assert done.returncode == 1
    message = done.stderr[done.stderr.rindex("flow: ") :]
    assert message.startswith("flow: 2 of 6 points failed")
    assert message.count("the disk is full") == 2
    assert all(re.search(rf"tiny-freeze=mlp-seed={seed}-\w+ failed with exit code", message) for seed in (0, 1))
    assert finished(project) == {(freeze, seed) for freeze in ("none", "qkv") for seed in "01"}
    assert not (project / "runs/sweeps/tiny").exists()
    assert untouched(project)
    expected = [
        f"{how}-{seed}" for how in ("distill-none", "distill-qkv", "resumed-qkv", "distill-mlp") for seed in (0, 1)
    ]
    expected.append("distill-mlp-0")  # it had failed before the stop, and a failed point is tried again
    assert sorted(ran(project)) == sorted(["synthesize", "calibrate", *expected])
    threads = (project.parent / "log/threads").read_text()
    assert threads == str(max(1, len(os.sched_getaffinity(0)) // 2)), "two at once divide the cores"
    check_results(project)

    before = {file.name: file.read_bytes() for file in (project / "sweeps/tiny").iterdir()}
    (project / "README").write_text("more words\n")
    shutil.rmtree(project / "sweeps/tiny")
    commit(project)
    assert sweep(project, "--only-report").returncode == 0, "from the experiments, which started from another commit"
    assert {file.name: file.read_bytes() for file in (project / "sweeps/tiny").iterdir()} == before

    commit(project)
    elsewhere = tmp_path / "clone"  # neither experiments nor cache
    run(["git", "clone", "-q", str(project), str(elsewhere)], tmp_path)
    assert sweep(elsewhere, "--only-report").returncode == 0
    assert {file.name: file.read_bytes() for file in (elsewhere / "sweeps/tiny").iterdir()} == before

    (project / "code.py").write_text(CODE + "# another way to train\n")
    commit(project)
    done = sweep(project, "--only-report")
    assert done.returncode == 1
    assert "no point of sweeps/tiny.yaml is finished for HEAD's code and knobs" in done.stderr
    assert {file.name: file.read_bytes() for file in (project / "sweeps/tiny").iterdir()} == before


def stop_when_asleep(project: Path, *options: str) -> None:
    """Start the sweep, press Ctrl-C as soon as two points are asleep, and prove that no process outlives it."""
    log = project.parent / "log"
    stop_flow(
        [*SWEEP, *options],
        project,
        own_environment(project),
        log / "output",
        lambda: len([*log.glob("asleep-*")]) >= 2,
        processes=5,  # Prefect's server, and DVC and what sleeps, twice
    )


def check_results(project: Path) -> None:
    """Scores, experiments, table and Prefect's artifact agree."""
    rows_by_point = {point: row for point, row in rows(project).items() if point[0] != "mlp"}
    assert {point: float(row["kl"]) for point, row in rows_by_point.items()} == pytest.approx(
        {("none", "0"): 0.2, ("none", "1"): 0.325, ("qkv", "0"): 0.25, ("qkv", "1"): 0.375}
    )
    assert all(float(row["perplexity.stderr"]) == 0.5 for row in rows_by_point.values())
    shown = run(["dvc", "exp", "show", "--csv"], project).stdout.splitlines()
    experiments = {row["Experiment"] for row in csv.DictReader(shown)} - {""}
    assert {row["experiment"] for row in rows_by_point.values()} == experiments
    with (project / "sweeps/tiny/curves.csv").open() as file:
        curves = [*csv.DictReader(file)]
    assert [*curves[0]] == ["experiment", "step", "kl", "gradient_norm", "gradient_norm.o"]
    assert len(curves) == 4 * 5
    database = sqlite3.connect(project / "runs/prefect/prefect.db")
    states = [state for (state,) in database.execute("select state_type from flow_run order by start_time")]
    (data,) = database.execute("select data from artifact where key = 'sweep-tiny'").fetchone()
    database.close()
    assert states == ["CRASHED", "FAILED"]
    table = {row["setting"]: row for row in json.loads(json.loads(data))}
    assert [*table] == ["none", "qkv"]
    assert table["qkv"]["difference, kl"] == "+0.05 ± 0 (2) *"
    text = (project / "sweeps/tiny/table.md").read_text()
    assert "| qkv | 2 |" in text
    assert "4 of 6 points are finished" in text


def test_two_policies_through_the_true_stages_to_the_report(pipeline: Path, tmp_path: Path) -> None:
    """One of them is what the pipeline ran already, and comes from DVC's run cache with all that the two share; the
    other's model can be taken into the tree."""
    project = shutil.copytree(pipeline, tmp_path / "project", symlinks=True)
    definition = {
        **DEFINITION,
        "grid": {"distill.freeze": ["none", "ov"]},
        "seeds": [0],
        "metrics": ["perplexity", "kl"],
    }
    define(project, definition)
    commit(project)
    command = [*SWEEP, "--jobs", "2"]
    environment_ = {**own_environment(project), "CI": ""}
    done = subprocess.run(command, cwd=project, env=environment_, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(re.findall(r"Running stage '([^']+)'", done.stdout + done.stderr)) == [
        "distill",
        "evaluate@student",
        "export@student",
    ]
    scores = json.loads((project / "data/scores/student.json").read_text())
    rows_by_point = rows(project)
    assert float(rows_by_point["ov", "0"]["kl"]) == scores["kl"]
    assert float(rows_by_point["none", "0"]["kl"]) != scores["kl"]
    done = run(["dvc", "repro", "report"], project)
    assert re.findall(r"Running stage '([^']+)'", done.stdout) == ["report"]
    page = (project / "data/report/index.html").read_text()
    assert "<h2>Sweeps</h2>" in page
    assert "<h3>tiny</h3>" in (project / "data/report/sweeps.html").read_text()
    assert {row["commit"] for row in rows_by_point.values()} == {
        line.split()[0] for line in run(["git", "for-each-ref", "refs/exps"], project).stdout.splitlines()
    }
    checked = run([sys.executable, "-m", "pipeline.audit", "verify"], project, check=False).stdout
    assert "sweeps/tiny" not in checked, "points are what their commits hold"
    assert "<h2>Sweeps</h2>" not in (pipeline / "data/report/index.html").read_text()
    applied = run(["dvc", "exp", "apply", rows_by_point["none", "0"]["experiment"]], project)
    assert "have been applied" in applied.stdout, applied.stdout
    scores = json.loads((project / "data/scores/student.json").read_text())
    assert scores["kl"] == float(rows_by_point["none", "0"]["kl"])
    done = run(["dvc", "repro"], project)
    assert re.findall(r"Running stage '([^']+)'", done.stdout) == ["inspect", "prove", "report"]
