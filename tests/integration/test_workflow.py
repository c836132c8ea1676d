"""The workflow's own script, which compares a change with its base, run as a runner would; and what the jobs may do."""

import subprocess
from pathlib import Path

import yaml

from tests.integration.conftest import ROOT, commit, environment, run, toy

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
JOBS = WORKFLOW["jobs"]
STAGES = """
stages:
  report:
    cmd: "echo 'kl: 0.25' > data/summary.yaml"
    params: [lr]
    metrics: [{data/summary.yaml: {cache: false}}]
"""


def compared(where: Path, base: str) -> tuple[str, str]:
    """What the step adds to the summary, and what it gives to the job that comments."""
    (script,) = (step["run"] for step in JOBS["differences"]["steps"] if step.get("id") == "compare")
    files = {"GITHUB_STEP_SUMMARY": where.parent / "summary", "GITHUB_OUTPUT": where.parent / "output"}
    for file in files.values():
        file.write_text("")
    env = {**environment(), "BASE": base, **{name: str(file) for name, file in files.items()}}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=where, env=env, check=True)
    summary, output = (file.read_text() for file in files.values())
    return summary, output


def test_a_changed_knob_and_score_are_shown_against_where_the_branch_began(tmp_path: Path) -> None:
    where = toy(tmp_path / "project", STAGES, {"lr": 0.1, "steps": 8})
    run(["dvc", "repro", "-q"], where)
    commit(where)
    run(["git", "checkout", "-q", "-b", "change"], where)
    (where / "params.yaml").write_text("lr: 0.1\nsteps: 8\n# a remark\n")
    commit(where)
    summary, _ = compared(where, "main")
    assert "No score differs." in summary
    assert "No knob differs." in summary

    (where / "params.yaml").write_text("lr: 0.2\nsteps: 8\n")
    (where / "data/summary.yaml").write_text("kl: 0.125\n")
    commit(where)
    run(["git", "checkout", "-q", "main"], where)
    (where / "params.yaml").write_text("lr: 0.1\nsteps: 99\n")
    commit(where)
    run(["git", "checkout", "-q", "change"], where)
    summary, output = compared(where, "main")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary.splitlines() if line.startswith("|")]
    assert ["data/summary.yaml", "kl", "0.25", "0.125", "-0.125"] in rows
    assert ["params.yaml", "lr", "0.1", "0.2"] in rows
    assert "steps" not in summary, "what others did on main meanwhile is no part of the change"
    first, *lines, delimiter = output.splitlines()
    assert first == f"table<<{delimiter}"
    assert "\n".join(lines).strip() == summary.strip()


def test_one_job_may_write_and_runs_nothing_of_the_change_and_forks_do_without_it() -> None:
    assert WORKFLOW["permissions"] == {}
    may_write = [name for name, job in JOBS.items() if "write" in job["permissions"].values()]
    assert may_write == ["comment"]
    assert JOBS["comment"]["permissions"] == {"pull-requests": "write"}
    assert not [step for step in JOBS["comment"]["steps"] if "uses" in step]
    assert "head.repo.full_name == github.repository" in JOBS["comment"]["if"]
    actions = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert actions
    assert [action for action in actions if len(action.partition("@")[2]) != 40] == [], "pinned to commits"
    assert "secrets." not in (ROOT / ".github/workflows/checks.yml").read_text()
