"""The flow as a deployment, as the README has it: a server, a process work pool, a worker, runs started by the API."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.deployments import QUIET, Deployment, answers, sleeping, wait
from tests.integration.test_flow import DVC, ROOT, STAGES, SUMMARY, environment, ran


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A project with its own copy of the flow, deployed on its own server; after the tests nothing is left of it."""
    project = tmp_path_factory.mktemp("deployed") / "project"
    shutil.copytree(ROOT / "pipeline", project / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", project)
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    subprocess.run([*DVC, "init", "--quiet"], cwd=project, env=environment(), check=True)
    (project / "dvc.yaml").write_text(STAGES)
    (project / "summary.json").write_text(json.dumps(SUMMARY))
    (project / ".gitignore").write_text("/runs/\n__pycache__/\n")
    (project / "runs").mkdir()
    (project / "runs/network").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deployment = Deployment(project, port)
    try:
        log = deployment.start("server", "start", "--host", "127.0.0.1", "--port", str(port), where=project)
        wait(lambda: answers(port), log)
        deployment.run("work-pool", "create", "permafrost", "--type", "process", where=project)
        deployment.run("deploy", "--all", where=project)
        yield deployment
        for process in reversed(deployment.started):
            process.terminate()
            process.wait(timeout=60)
        wait(lambda: not deployment.left(), log, seconds=10)
        assert not answers(port)
    finally:
        for process in deployment.left():
            process.kill()


@pytest.fixture(scope="module")
def worker(deployed: Deployment) -> Path:
    """The log of a worker in the project."""
    log = deployed.start("worker", "start", "--pool", "permafrost", where=deployed.project)
    wait(lambda: "started" in log.read_text(), log)
    return log


def test_a_schedule_is_deployed_that_starts_nothing_until_it_is_resumed(deployed: Deployment) -> None:
    deployment = deployed.api("deployments/name/permafrost/repro")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"]["cron"] == "0 3 * * *"
    assert not schedule["active"]
    assert deployment["parameters"] == {"targets": None, "share": False}
    assert deployment["global_concurrency_limit"]["limit"] == 1
    only = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    assert deployed.api("flow_runs/filter", only) == []

    path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
    deployed.api(path, {"active": True}, method="PATCH")
    wait(lambda: deployed.api("flow_runs/filter", only) != [], deployed.project / "runs/log0")
    runs = deployed.api("flow_runs/filter", only)
    assert {run["state"]["type"] for run in runs} == {"SCHEDULED"}
    assert {run["expected_start_time"][11:16] for run in runs} == {"03:00"}
    deployed.api(path, {"active": False}, method="PATCH")
    wait(lambda: deployed.api("flow_runs/filter", only) == [], deployed.project / "runs/log0")


def test_a_run_started_by_the_api_ends_with_its_artifacts(deployed: Deployment, worker: Path) -> None:
    run = deployed.trigger("repro")
    assert deployed.ended(run, worker) == "COMPLETED", worker.read_text()
    order = ran(deployed.project)
    assert (order[0], sorted(order[1:3]), order[3]) == ("teacher", ["export@high", "export@low"], "report")
    artifacts = deployed.api("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    data = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert set(data) == {"scores", "report"}
    assert json.loads(data["scores"])[0] == {
        "metric": "perplexity",
        "teacher": "20.125 ± 0.2",
        "student": "22.5 ± 0.25",
        "rtn": "-",
    }
    assert (deployed.project / "data/report/index.html").as_uri() in data["report"]
    wait(lambda: deployed.of_stages() == [], worker, seconds=10)


def test_a_run_cancelled_by_the_api_ends_its_stage_and_leaves_no_lock(deployed: Deployment, worker: Path) -> None:
    sleeping(deployed)
    run = deployed.trigger("repro", targets=["export@low"])
    wait(lambda: "- asleep" in worker.read_text(), worker)
    assert [command for command in deployed.of_stages() if "time.sleep(300)" in command[-1]]
    deployed.api(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert deployed.ended(run, worker) == "CANCELLED"
    wait(lambda: deployed.of_stages() == [], worker, seconds=10)

    (deployed.project / "runs/go").touch()
    again = deployed.trigger("repro", targets=["export@low"])
    assert deployed.ended(again, worker) == "COMPLETED", worker.read_text()
    assert ran(deployed.project)[-2:] == ["export@low", "export@low"]


def test_a_worker_that_is_stopped_takes_its_stage_along(deployed: Deployment, worker: Path) -> None:
    """Prefect kills the run's process then, which leaves it no time to end the stage itself."""
    sleeping(deployed, "trap '' TERM INT HUP;")
    said = worker.read_text().count("- asleep")
    deployed.trigger("repro", targets=["export@low"])
    wait(lambda: worker.read_text().count("- asleep") > said, worker)
    process = deployed.started[-1]
    process.terminate()
    process.wait(timeout=60)
    wait(lambda: deployed.of_stages() == [], worker, seconds=10)

    (deployed.project / "runs/go").touch()
    command = [*DVC, "repro", "export@low"]
    done = subprocess.run(command, cwd=deployed.project, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_hosts_that_clone_the_project_share_what_they_make(deployed: Deployment, tmp_path: Path) -> None:
    """Each run is in a fresh clone; the second finds what the first made in DVC's remote."""
    log, host, origin = tmp_path / "order", tmp_path / "host", tmp_path / "origin"
    shutil.copytree(deployed.project, origin, ignore=shutil.ignore_patterns("runs", "data", "cache", "tmp", "dvc.lock"))
    stages = STAGES.replace("runs/order", str(log)).replace("test -e runs/network", "mkdir runs")
    kept = stages.replace("outs: [model]", "deps: [summary.json]\n    outs: [model]")  # DVC keeps no run without deps
    (origin / "dvc.yaml").write_text(kept)
    subprocess.run(
        [*DVC, "remote", "add", "--quiet", "-d", "storage", str(tmp_path / "storage")], cwd=origin, check=True
    )
    deployment = yaml.safe_load((origin / "prefect.yaml").read_text())
    deployment["pull"] = [{"prefect.deployments.steps.git_clone": {"repository": str(origin)}}]
    deployment["deployments"][0] |= {"name": "hosts", "parameters": {"targets": ["export@low"], "share": True}}
    (origin / "prefect.yaml").write_text(yaml.safe_dump(deployment))
    subprocess.run(["git", "add", "--all"], cwd=origin, check=True)
    subprocess.run(["git", *QUIET, "commit", "--quiet", "-m", "state"], cwd=origin, check=True)
    deployed.run("deploy", "--all", where=origin)

    host.mkdir()
    worker = deployed.start("worker", "start", "--pool", "permafrost", where=host)
    for _ in range(2):
        run = deployed.trigger("hosts")
        assert deployed.ended(run, worker) == "COMPLETED", worker.read_text()
        assert log.read_text().split() == ["teacher", "export@low"]
    assert os.listdir(host) == []
