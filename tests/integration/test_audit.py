"""The audit on the true pipeline's results: what it compares, traces and finds."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.integration.conftest import ROOT, change_params, commit, run

AUDIT = ["python", "-m", "pipeline.audit"]


@pytest.fixture(scope="module")
def versions(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions: the pipeline's, one with another seed of distillation (a commit), and one that a rate far too
    high broke (an experiment that ends with its scores, before the report)."""
    where = tmp_path_factory.mktemp("versions") / "project"
    shutil.copytree(pipeline, where, symlinks=True)
    shutil.copytree(ROOT / "sweeps/freezing", where / "sweeps/freezing")
    run(["git", "tag", "first"], where)
    change_params(where, {"distill": {"seed": 1}})
    run(["dvc", "repro"], where)
    commit(where)
    run(["dvc", "exp", "run", "--name", "broken", "-S", "distill.lr=0.5", "evaluate@student"], where)
    run(["git", "checkout", "-q", "."], where)
    run(["dvc", "checkout", "-q"], where)
    return where


def test_versions_are_compared_in_pairs(versions: Path) -> None:
    done = run([*AUDIT, "--out", "runs/audit"], versions)
    assert "distill.seed: 0 -> 1" in done.stdout
    assert "distill.lr: 0.002 -> 0.5" in done.stdout
    table = pd.read_csv(versions / "runs/audit/audit.csv")
    pairs = table[table["kind"] == "comparison"].set_index(["version", "against", "variant", "name"])
    head = run(["git", "rev-parse", "--short", "HEAD"], versions).stdout.strip()
    first = run(["git", "rev-parse", "--short", "first"], versions).stdout.strip()
    assert pairs.loc[("broken", head, "student", "kl"), "verdict"] == "worse"
    assert pairs.loc[(head, first, "student", "log_perplexity"), "pairs"] == 3
    assert pairs.loc[(head, first, "student", "accuracy"), "pairs"] == 6
    seeds = table[(table["version"] == head) & (table["against"] == first) & (table["variant"] == "student")]
    assert {*seeds["verdict"]} == {"no difference shown"}, "two seeds of the same thing"
    same = table[(table["version"] == head) & (table["against"] == first) & (table["variant"] == "rtn")]
    assert [*same["verdict"]] == ["the same answers, byte for byte"]
    summary = json.loads((versions / "data/report/summary.json").read_text())
    metrics = table[(table["version"] == "workspace") & (table["kind"] == "metric")].set_index("name")["value"]
    assert metrics["kl.student"] == pytest.approx(summary["kl.student"])
    assert not table["stale"].any()
    broken = table[(table["version"] == "broken") & (table["kind"] == "metric")].set_index("name")["value"]
    assert broken["kl.student"] == pytest.approx(pairs.loc[("broken", head, "student", "kl"), "value"])
    of_scores = {metric for metric in metrics.index if not metric.startswith("proof.")}  # which it did not run
    assert {*broken.index} == of_scores < {*metrics.index}, "what the report would say of the scores"
    page = (versions / "runs/audit/index.html").read_text()
    assert "Left out, as they were made from another model: freezing" in page
    assert "Lineage of perplexity.student" in page
    assert "src=" not in page
    assert str(versions) not in page


def test_a_number_is_traced_to_the_teachers_own_file(versions: Path) -> None:
    told = run([*AUDIT, "trace", "kl.student", "--version", "first"], versions).stdout
    lock = yaml.safe_load(run(["git", "show", "first:dvc.lock"], versions).stdout)["stages"]
    for stage in ("evaluate@student", "export@student", "distill", "targets", "calibrate", "synthesize", "teacher"):
        out = next(out for out in lock[stage]["outs"] if not re.match("data/(items|environments)/", out["path"]))
        if stage == "export@student":  # of whose formats one is scored
            out = next(dep for dep in lock["evaluate@student"]["deps"] if dep["path"].startswith(f"{out['path']}/"))
        assert f"{out['path']}  {out['md5'][:12]}  <- {stage}" in told
    assert "seed=0" in told
    assert "from source path" in told
    assert told.count("ran on ") == told.count(" with ") >= 7
    assert "python 3." in told
    assert f"torch {version('torch')}" in told
    assert "STALE" not in told
    assert "evaluate@rtn" not in told
    assert "evaluate@rtn" in run([*AUDIT, "trace", "gap.rtn"], versions).stdout


def test_a_metric_or_version_that_there_is_not_is_one_line(versions: Path) -> None:
    for arguments, message in (
        (["trace", "kl.studnet"], "did you mean"),
        (["nowhere", "neither"], "neither: no commit, tag, branch or DVC experiment is called so"),
    ):
        done = run([*AUDIT, *arguments], versions, check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def verified(where: Path) -> tuple[int, str]:
    done = run([*AUDIT, "verify"], where, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_what_is_as_it_was_made_passes(versions: Path) -> None:
    assert verified(versions) == (0, verified(versions)[1])
    assert "all as they were made" in verified(versions)[1]
    assert "not checked: 96 of 96 points of sweeps/freezing: the commits are not known" in verified(versions)[1]


def test_a_mean_edited_in_a_sweeps_table_is_found(versions: Path, tmp_path: Path) -> None:
    where = tmp_path / "project"
    shutil.copytree(versions, where, symlinks=True)
    file = where / "sweeps/freezing/table.csv"
    mean = pd.read_csv(file, dtype=str)["mean"][0]
    file.write_text(file.read_text().replace(mean, "0.01"))
    code, told = verified(where)
    assert code == 1
    assert f"is 0.01, but points.csv gives {float(mean)}" in told


def test_what_was_tampered_with_is_found_and_named(versions: Path, tmp_path: Path) -> None:
    """Edited scores; a swapped model; a lock with other hashes, other commands, and less in it; an edited knob."""
    where = tmp_path / "project"
    shutil.copytree(versions, where, symlinks=True)
    scores, summary = where / "data/scores/student.json", where / "data/report/summary.json"
    scores.write_text(scores.read_text().replace('"kl": ', '"kl": 1').replace('"perplexity": ', '"perplexity": 1'))
    summary.write_text(summary.read_text().replace('"top1.student": ', '"top1.student": 1'))
    shutil.copy2(where / "data/rtn/codes.safetensors", where / "data/student/codes.safetensors")
    lock = yaml.safe_load((where / "dvc.lock").read_text())
    lock["stages"]["synthesize"]["outs"][0]["md5"] = "0" * 32 + ".dir"
    lock["stages"]["export@ptq"]["cmd"] += " --fast"
    code = next(dep for dep in lock["stages"]["export@rtn"]["deps"] if dep["path"] == "stages/export.py")
    lock["stages"]["export@rtn"]["deps"].remove(code)
    lock["stages"]["evaluate@rtn"]["outs"] = [
        out for out in lock["stages"]["evaluate@rtn"]["outs"] if out["path"] != "data/items/rtn"
    ]
    del lock["stages"]["targets"]["params"]["params.yaml"]["targets"]
    (where / "dvc.lock").write_text(yaml.safe_dump(lock))
    change_params(where, {"calibrate": {"damping": 0.02}})
    pins = where / "versions.yaml"
    pins.write_text(re.sub('datasets: ".*"', 'datasets: "0.1"', pins.read_text()))
    code, told = verified(where)
    assert code == 1
    for line in (
        "data/scores/student.json: its content is not what evaluate@student made",
        "data/scores/student.json: kl is 1",
        "data/scores/student.json: perplexity is 1",
        "data/report/summary.json: its content is not what report made",
        "data/report/summary.json: top1.student is 1",
        "data/student/codes.safetensors: changed",
        "data/student/codes.safetensors: its sha256 is not the one in the manifest",
        "data/corpus: its content is not what synthesize made",
        "calibrate: stale: data/corpus is not what synthesize made; the knob calibrate.damping has changed",
        "references: stale: data/corpus is not what synthesize made",
        "evaluate@teacher: stale: references is stale; datasets is pinned to 0.1, it ran with",
        "export@ptq: its command in dvc.yaml is not the one that was run",
        "export@rtn: by dvc.yaml it reads stages/export.py; dvc.lock does not know of it",
        "evaluate@rtn: by dvc.yaml it makes data/items/rtn; dvc.lock does not know of it",
        "targets: by dvc.yaml it reads the knobs targets; dvc.lock does not know of it",
    ):
        assert line in told, told
    run([*AUDIT, "workspace"], where)
    table = pd.read_csv(where / "runs/audit/audit.csv")
    assert table["stale"].all(), "metrics older than what they are made from"


def test_what_is_damaged_is_found_and_named_and_the_rest_is_looked_at_all_the_same(
    versions: Path, tmp_path: Path
) -> None:
    where = tmp_path / "project"
    shutil.copytree(versions, where, symlinks=True)
    teacher = where / "data/teacher/model.safetensors"
    damaged = {
        "data/teacher/model.safetensors": teacher.read_bytes()[:100],
        "data/student/manifest.json": b"[]",
        "data/scores/rtn.json": b'{"kl": ' + b"9" * 400 + b"}",
        "data/scores/ptq.json": b"[]",
        "data/report/summary.json": b'{"kl.student": null}',
    }
    for path, content in damaged.items():
        (where / path).unlink()
        (where / path).write_bytes(content)
    shutil.rmtree(where / "data/int4/student")
    code, told = verified(where)
    assert code == 1
    for line in (
        "data/teacher/model.safetensors: changed",
        "data/teacher/model.safetensors: its sha256 is not the one in the manifest",
        "data/scores/teacher.json: it cannot be held against data/teacher: ",
        "data/student/manifest.json: it is missing, or no manifest",
        "data/scores/rtn.json: it holds no numbers by name",
        "data/scores/ptq.json: it holds no numbers by name",
        "data/report/summary.json: its content is not what report made",
        "data/int4/student: missing",
        "data/scores/student.json: it cannot be held against data/int4/student/compressed-tensors: ",
    ):
        assert line in told, told
    assert "None" not in told


def test_another_pin_makes_the_stages_stale_that_depend_on_it(versions: Path, tmp_path: Path) -> None:
    """For DVC, which would run them, and for the audit."""
    where = tmp_path / "project"
    shutil.copytree(versions, where, symlinks=True)
    pins = where / "versions.yaml"
    pins.write_text(re.sub('datasets: ".*"', 'datasets: "0.1"', pins.read_text()))
    status = json.loads(run(["dvc", "status", "--json"], where).stdout)
    own = {stage for stage, reasons in status.items() if "versions.yaml" in json.dumps(reasons)}
    assert own == {f"evaluate@{variant}" for variant in ("teacher", "rtn", "ptq", "student")}
    stale = {line.split(":")[0] for line in verified(where)[1].splitlines() if "datasets is pinned to 0.1" in line}
    assert stale == own


def test_what_no_stage_made_is_named(versions: Path, tmp_path: Path) -> None:
    """But for text that a stage reads, and what Git has."""
    where = tmp_path / "project"
    shutil.copytree(versions, where, symlinks=True)
    (where / "data/better_student").mkdir()
    (where / "data/better_student/model.safetensors").write_bytes(b"x")
    (where / "data/text/mine.txt").write_text("mine")
    code, told = verified(where)
    assert code == 1
    assert "data/better_student/model.safetensors: no stage made it, and Git does not have it" in told
    assert "data/text/mine.txt" not in told
    assert "targets: stale: data/text has changed" in told


def test_a_score_that_was_edited_with_all_its_hashes_is_found(versions: Path, tmp_path: Path) -> None:
    """DVC is content, the report is made anew from it: only the items and the model's file know better."""
    where = tmp_path / "project"
    shutil.copytree(versions, where, symlinks=True)
    scores = where / "data/scores/student.json"
    edited_scores = json.loads(scores.read_text())
    for name in ("perplexity", "accuracy.stderr", "weight_bytes"):
        edited_scores[name] *= 0.9
    scores.unlink()
    scores.write_text(json.dumps(edited_scores))
    run(["dvc", "commit", "--force", "evaluate@student"], where)
    run(["dvc", "repro", "report"], where)
    code, told = verified(where)
    findings = [line for line in told.splitlines()[:-1] if not line.startswith("not checked: ")]
    assert code == 1
    assert {line.split(" is ")[0] for line in findings} == {
        f"data/scores/student.json: {name}" for name in ("perplexity", "accuracy.stderr", "weight_bytes")
    }, told
    assert all("but what it was made from gives" in line for line in findings)
