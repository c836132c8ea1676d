"""The Prefect flow, run for real as a subprocess on a tiny DVC project, with Prefect's own server."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stopping import alive, stop_flow

ROOT = Path(__file__).parents[2]
FLOW = [sys.executable, "-m", "pipeline.flow"]
DVC = [sys.executable, "-m", "dvc"]
SUMMARY = {
    "perplexity.teacher": 20.125,
    "perplexity.teacher.stderr": 0.2,
    "perplexity.student": 22.5,
    "perplexity.student.stderr": 0.25,
    "kl.student": 0.01,
    "task.piqa.teacher": 0.75,
    "recovered.student": 0.9,
    "recovered.student.low": 0.8,
    "recovered.student.high": 0.95,
    "gap.rtn": 0.5,
    "gap.rtn.p": 0.001,
}

# Against the DAG's order, so that the order in which they run is nobody's accident.
STAGES = """
stages:
  report:
    cmd:
      - echo report >> runs/order
      - mkdir -p data/report
      - echo page > data/report/index.html
      - cp summary.json data/report/
    deps: [a_low, a_high]
    outs: [data/report/index.html]
    metrics: [data/report/summary.json: {cache: false}]
  export:
    foreach: {low: 1, high: 2}
    do:
      cmd:
        - echo export@${key} >> runs/order
        - cp model a_${key}
      deps: [model]
      outs: ["a_${key}"]
  teacher:
    cmd:
      - echo teacher >> runs/order
      - test -e runs/network || { touch runs/network; echo no route to host; exit 7; }
      - python -c "import sys; print(sys.prefix)" > runs/python
      - printf '10%%\\r20%%\\n'; sleep 300 & echo $! > runs/left
      - echo m > model
    outs: [model]
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A project whose dvc.yaml is STAGES, and the flow's answer there to a target that is not there.

    No stage has run in it, but Prefect's database exists, which takes several seconds to make.
    """
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "--quiet"], cwd=folder, env=environment(), check=True)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder, run(folder, "exprot")


@pytest.fixture
def project(fresh: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> Path:
    """A copy of the fresh project, for one test."""
    return shutil.copytree(fresh[0], tmp_path / "project")


def environment() -> dict[str, str]:
    """As a user's, but with no virtual environment on PATH, no settings for Prefect, and no wait before a retry."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    added = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}
    return {**kept, **added, "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "0"}


def run(project: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FLOW, *targets], cwd=project, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def ran(project: Path) -> list[str]:
    """The stages whose commands ran, in their order, one entry an attempt."""
    return (project / "runs/order").read_text().split()


def select(project: Path, query: str) -> list[tuple]:
    """Rows of Prefect's database, in the folder where the flow puts it."""
    connection = sqlite3.connect(project / "runs/prefect/prefect.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def outcome(project: Path) -> str:
    """How the last run of the flow ended, as Prefect recorded it."""
    return select(project, "select state_type from flow_run order by start_time")[-1][0]


def artifacts(project: Path) -> list[tuple]:
    return select(project, "select key, type, data from artifact where key is not null")


def test_an_unknown_target_is_answered_in_dvcs_words(fresh: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = fresh
    assert done.returncode == 1
    assert "'exprot' does not exist" in done.stderr[done.stderr.rindex("flow: ") :]
    assert "Traceback" not in done.stdout + done.stderr
    assert outcome(folder) == "FAILED"
    assert not (folder / "runs/order").exists()


def test_stages_run_in_order_the_teacher_is_retried_and_the_scores_are_published(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    order = ran(project)
    assert order[:2] == ["teacher", "teacher"]
    assert sorted(order[2:4]) == ["export@high", "export@low"]
    assert order[4:] == ["report"]

    tasks = select(project, "select name, state_type, run_count from task_run order by start_time")
    assert tasks == [(name, "COMPLETED", 2 if name == "teacher" else 1) for name in order[1:]]

    assert (project / "runs/python").read_text().strip() == sys.prefix
    said = (done.stdout + done.stderr).splitlines()
    assert [line.rpartition(" - ")[2] for line in said if line.endswith("0%")] == ["10%", "20%"]
    assert not alive(int((project / "runs/left").read_text())), "what a stage leaves running is ended with it"

    data_by_key = {
        key: json.loads(json.loads(data)) if kind == "table" else json.loads(data)
        for key, kind, data in artifacts(project)
    }
    assert set(data_by_key) == {"scores", "report"}
    assert data_by_key["scores"] == [
        {"metric": "perplexity", "teacher": "20.125 ± 0.2", "student": "22.5 ± 0.25", "rtn": "-"},
        {"metric": "kl", "teacher": "-", "student": "0.01", "rtn": "-"},
        {"metric": "task.piqa", "teacher": "0.75", "student": "-", "rtn": "-"},
        {"metric": "recovered", "teacher": "-", "student": "0.9 (0.8 to 0.95)", "rtn": "-"},
        {"metric": "gap", "teacher": "-", "student": "-", "rtn": "0.5"},
    ]
    assert "22.5 ± 0.25" in data_by_key["report"]
    assert "task.piqa" not in data_by_key["report"]
    assert (project / "data/report/index.html").as_uri() in data_by_key["report"]


def test_a_failing_stage_is_named_ends_the_run_and_is_not_retried(project: Path) -> None:
    (project / "runs/network").touch()
    flow = project / "dvc.yaml"
    flow.write_text(flow.read_text().replace("cp model a_${key}", "echo the disk of ${key} is full >&2; exit 3"))
    done = run(project)
    order = ran(project)
    assert done.returncode == 1
    assert order[0] == "teacher"
    assert order[1].startswith("export@")
    assert len(order) == 2, "neither a retry nor a later stage"
    message = done.stderr[done.stderr.rindex("flow: ") :]
    assert f"stage {order[1]} failed with exit code" in message
    assert f"the disk of {order[1].removeprefix('export@')} is full" in message
    assert "exited with 3" in message
    assert "Traceback" not in done.stdout + done.stderr
    tasks = select(project, "select name, state_type from task_run order by start_time")
    assert tasks == [("teacher", "COMPLETED"), (order[1], "FAILED")]
    assert outcome(project) == "FAILED"
    assert artifacts(project) == []


def test_targets_bring_along_what_they_need_and_no_more(project: Path) -> None:
    (project / "runs/network").touch()
    done = run(project, "export@low")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(project) == ["teacher", "export@low"]
    assert artifacts(project) == []


@pytest.mark.parametrize(
    ("number", "to_group", "trap"),
    [(signal.SIGINT, True, ""), (signal.SIGTERM, False, "trap '' TERM INT HUP;")],
    ids=["ctrl-c", "term-of-a-stubborn-stage"],
)
def test_a_killed_flow_leaves_no_process_and_no_lock(project: Path, number: int, to_group: bool, trap: str) -> None:
    sleeping = f"""{trap} python -c "import time; print('as' + 'leep'); time.sleep(300)" """  # DVC prints this, too
    (project / "dvc.yaml").write_text(STAGES.replace("cp model", f"test -e runs/go || {{ {sleeping}; }}; cp model"))
    (project / "runs/network").touch()
    log = project / "runs/log"
    stop_flow(
        FLOW,
        project,
        environment(),
        log,
        lambda: "asleep" in log.read_text(),  # it is there while the stage runs, or this never ends
        number,
        to_group,
        processes=4,  # Prefect's server, DVC, the shell and what sleeps
    )
    assert outcome(project) == "CRASHED"
    assert "report" not in ran(project)

    (project / "runs/go").touch()
    again = subprocess.run([*DVC, "repro"], cwd=project, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert ran(project)[-1] == "report"
