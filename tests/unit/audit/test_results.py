"""What `verify` finds in the results of sweeps: edited tables, edited points, and what it cannot check."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.artifacts import contract
from pipeline.audit import results
from pipeline.audit.cache import Cache
from pipeline.audit.trees import Git
from pipeline.report import comparison, sweep_files
from tests.unit.audit.conftest import digest

SCORES = b'{"kl": 0.25, "kl.stderr": 0.01, "read": {"text": "ab"}}'
CURVES = b"step,kl\n1,0.5\n2,0.4\n3,0.3\n4,0.2\n"
CODE = {"stages/distill.py": "a" * 32}
LOCK = {
    "schema": "2.0",
    "stages": {
        "evaluate@student": {
            "cmd": "e",
            "deps": [{"path": "stages/distill.py", "md5": "a" * 32}],
            "outs": [
                {"path": "data/scores/student.json", "md5": digest(SCORES)},
                {"path": "data/student", "md5": "f" * 32 + ".dir"},
            ],
        }
    },
}


def run(where: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a commit whose scores and curves are in a cache, and a sweep with its point."""
    root = tmp_path_factory.mktemp("project")
    run(root, "init", "--quiet")
    (root / "dvc.lock").write_text(yaml.safe_dump(LOCK))
    run(root, "add", "dvc.lock")
    run(root, "commit", "--quiet", "-m", "point")
    listing = json.dumps([{"md5": digest(CURVES), "relpath": "log.csv"}]).encode()
    for md5, content in {digest(SCORES): SCORES, digest(CURVES): CURVES, "f" * 32 + ".dir": listing}.items():
        (root / "cache" / md5[:2]).mkdir(parents=True, exist_ok=True)
        (root / "cache" / md5[:2] / md5[2:]).write_bytes(content)
    folder = root / "sweeps/s"
    folder.mkdir(parents=True)
    made = {"commit": run(root, "rev-parse", "HEAD"), "code": sweep_files.digest(CODE), "teacher": "t", "read": "ab"}
    point = {"experiment": "s-1", **made, "setting": "ov", "freeze": "ov", "seed": 0, "kl": 0.25, "kl.stderr": 0.01}
    points = pd.DataFrame([point | {"end.kl": 0.2}])
    lineage = {
        "knobs": ["freeze"], "seed": "seed", "metrics": ["kl", "end.kl"], "baseline": {},
        "target": "evaluate@student", "scores": "data/scores/student.json", "curves": "data/student/log.csv",
        "code": {sweep_files.digest(CODE): CODE},
    }  # fmt: skip
    (folder / "lineage.json").write_text(json.dumps(lineage))
    points.to_csv(folder / "points.csv", index=False)
    (folder / "curves.csv").write_text(CURVES.decode().replace("step", "experiment,step").replace("\n", "\ns-1,")[:-4])
    table = comparison.compare(points, ["freeze"], "seed", ["kl", "end.kl"], {})
    table.to_csv(folder / "table.csv", index=False)
    (folder / "table.md").write_text(comparison.markdown("s", table, 1, 1))
    return root


@pytest.fixture
def project(fresh: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fresh, tmp_path / "project")


def verified(project: Path) -> tuple[list[str], list[str]]:
    with Git(project) as git:
        findings, unchecked = results.verify(git, project / "sweeps", Cache(project / "cache"))
    return [f"{finding.what}: {finding.problem}" for finding in findings], unchecked


def edit(project: Path, name: str, before: str, after: str) -> None:
    file = project / "sweeps/s" / name
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


def test_what_is_as_it_was_made_passes(project: Path):
    assert verified(project) == ([], [])


def test_a_mean_edited_in_the_table_is_found(project: Path):
    edit(project, "table.csv", "0.25", "0.15")
    ((finding,), _) = verified(project)
    assert finding == "sweeps/s/table.csv: mean of kl of ov is 0.15, but points.csv gives 0.25"
    edit(project, "table.csv", "0.15", "0.25")
    edit(project, "table.md", "0.25", "0.15")
    assert verified(project)[0] == ["sweeps/s/table.md: it is not what points.csv gives"]


def test_a_point_edited_with_its_table_is_not_what_its_commit_holds(project: Path):
    for name in ("points.csv", "table.csv", "table.md"):
        edit(project, name, "0.25", "0.15")
    assert verified(project)[0] == ["sweeps/s/points.csv: kl of s-1 is 0.15, its commit has 0.25"]


def test_edited_curves_are_not_what_their_commit_holds(project: Path):
    edit(project, "curves.csv", "0.5", "0.6")
    assert verified(project)[0] == ["sweeps/s/curves.csv: step 1 of s-1 is not what its commit has"]
    edit(project, "curves.csv", "0.6", "0.5")
    edit(project, "curves.csv", "4,0.2", "4,0.1")
    assert "sweeps/s/points.csv: end.kl of s-1 is 0.2, but curves.csv gives 0.1" in verified(project)[0]


def test_answers_are_those_that_the_lineage_has_the_hash_of(project: Path):
    file, lineage = project / "sweeps/s/answers.parquet", project / "sweeps/s/lineage.json"
    file.write_bytes(b"answers")
    told = json.loads(lineage.read_text()) | {"answers": contract.sha256(file)}
    lineage.write_text(json.dumps(told))
    assert verified(project) == ([], [])
    file.write_bytes(b"others")
    assert verified(project)[0] == ["sweeps/s/answers.parquet: it is not what lineage.json has the sha256 of"]
    file.unlink()
    assert verified(project) == ([], ["sweeps/s/answers.parquet: it is not here"])


def test_other_code_than_the_commits_is_found(project: Path):
    edit(project, "lineage.json", "a" * 32, "b" * 32)
    (finding,) = verified(project)[0]
    assert f"the files of code {sweep_files.digest(CODE)} are not those" in finding
    edit(project, "lineage.json", sweep_files.digest(CODE), sweep_files.digest({"stages/distill.py": "b" * 32}))
    edit(project, "points.csv", sweep_files.digest(CODE), sweep_files.digest({"stages/distill.py": "b" * 32}))
    (finding,) = verified(project)[0]
    assert "code of s-1 is" in finding


def test_what_cannot_be_checked_is_named_and_no_finding(project: Path):
    commit = pd.read_csv(project / "sweeps/s/points.csv", dtype=str)["commit"][0]
    shutil.rmtree(project / "cache")
    assert verified(project) == ([], ["1 of 1 points of sweeps/s: their scores and curves are not in the cache"])
    edit(project, "points.csv", commit, "0" * 40)
    assert verified(project) == ([], ["1 of 1 points of sweeps/s: their commits are not in this clone"])
    edit(project, "points.csv", "0" * 40, "unknown")
    assert verified(project) == ([], ["1 of 1 points of sweeps/s: the commits are not known"])


def test_what_are_no_results_are_named(project: Path):
    (project / "sweeps/s/lineage.json").write_text("{}")
    (finding,) = verified(project)[0]
    assert finding.startswith("sweeps/s: these are no results of a sweep: lineage.json has no knobs")


def test_the_teacher_at_hand_is_known_by_its_manifest(tmp_path: Path):
    assert results.teacher(tmp_path) == ""
    (tmp_path / "data/teacher").mkdir(parents=True)
    (tmp_path / "data/teacher/manifest.json").write_text('{"facts": {"sha256": "bcc8"}}')
    assert results.teacher(tmp_path) == "bcc8"
