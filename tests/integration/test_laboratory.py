"""The laboratory at the true command line: two points of it on the tiny model, what is recommended, and the page."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from pipeline.report.sweep_files import OF_POINT
from tests.integration.conftest import commit, run
from tests.integration.toy_sweep import own_environment

FILE = "sweeps/laboratory.yaml"
SCHEMES = ["W8E8H6", "W4A8KV8E8H6"]
UNSAID = {"group": "basic", "part": "reasoning", "level": "", "answer": -1, "right_probability": float("nan")}


def test_points_share_the_teachers_answers_and_keep_their_own(pipeline: Path, tmp_path: Path) -> None:
    project = shutil.copytree(pipeline, tmp_path / "project", symlinks=True)
    definition = yaml.safe_load((project / FILE).read_text())
    definition["points"] = [
        {"scheme": scheme, "calibrate.method": "rtn", "calibrate.rotation": "none"} for scheme in SCHEMES
    ]
    del definition["set"]["evaluate.items"]  # as many as the teacher was asked
    (project / FILE).write_text(yaml.safe_dump(definition))
    commit(project)
    command = [sys.executable, "-m", "pipeline.flow", "sweep", FILE]
    environment = {**own_environment(project), "CI": ""}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = re.findall(r"Running stage '([^']+)'", done.stdout + done.stderr)
    assert sorted(ran) == sorted(["calibrate", "export@ptq", "evaluate@ptq"] * len(SCHEMES)), (
        "the teacher was scored before"
    )

    file = project / "sweeps/laboratory/answers.parquet"
    answers = pd.read_parquet(file)
    points = answers.drop_duplicates("point").set_index("scheme")
    assert [*answers][:7] == [*OF_POINT]
    assert [*points.index] == ["", *SCHEMES]
    assert points.loc["", "point"] == "teacher"
    assert points.loc["W4A8KV8E8H6", ["bits_w", "bits_a", "bits_kv"]].tolist() == [4, 8, 8]
    assert answers.groupby("point").size().nunique() == 1
    teacher = pd.read_parquet(project / "data/items/teacher/answers.parquet")
    its_own = answers[answers["point"] == "teacher"][[*teacher]].reset_index(drop=True)
    said = its_own["group"] == "dialogue"
    tokens = pd.read_parquet(project / "data/items/teacher/tokens.parquet")
    spoken = tokens[(tokens["text"] == "dialogue") & (tokens["turn"] > 0)]
    assert said.sum() == len(spoken.drop_duplicates(["document", "turn"])) > 0
    assert (its_own[said]["right_probability"] == 1).all(), "the teacher's own tokens"
    there = its_own[~said]
    assert there.drop(columns="log_likelihoods").equals(teacher.drop(columns="log_likelihoods"))
    assert "answers.parquet" not in run(["git", "status", "--porcelain", "-uall"], project).stdout

    again = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "Running stage" not in again.stdout + again.stderr

    commit(project)
    run(["dvc", "repro", "report"], project)
    assert "<h2>Laboratory</h2>" in (project / "data/report/index.html").read_text()
    absent = {name: value for name, value in UNSAID.items() if name not in answers}
    whole = answers.assign(**absent) if "cluster" in answers else answers.assign(**absent, cluster=answers["item"])
    whole.to_parquet(tmp_path / "answers.parquet")
    asked = [sys.executable, "-m", "pipeline.recommend", "--answers", str(tmp_path / "answers.parquet"), "--claims"]
    told = subprocess.run(asked, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"Within 2 % of the teacher, {len(its_own)} items, 2 points")
    assert "not measured" in told.stdout
