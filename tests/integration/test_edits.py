"""Edits while a stage runs, or after it, that DVC would take for what the stage ran with."""

import shutil
import subprocess
from pathlib import Path

import yaml

from tests.integration.conftest import change_params, environment, run
from tests.integration.stopping import wait_for

RECORD = "data/environments/synthesize.json"


def test_a_knob_that_is_edited_while_its_stage_runs_is_no_knob_that_it_ran_with(pipeline: Path, tmp_path: Path) -> None:
    """DVC alone would note the new value, and be up to date with what the old one made."""
    where = shutil.copytree(pipeline, tmp_path / "project", symlinks=True)
    change_params(where, {"synthesize": {"sequences": 240}, "calibrate": {"fisher": False}})
    log = tmp_path / "log"
    with log.open("w") as output:
        repro = subprocess.Popen(
            ["dvc", "repro", "synthesize"], cwd=where, env=environment(), stdout=output, stderr=subprocess.STDOUT
        )
    wait_for(lambda: repro.poll() is None and '"synthesize.sequences": 240' in read(where / RECORD), repro, 120, log)
    change_params(where, {"synthesize": {"temperature": 0.5}, "distill": {"steps": 41}})
    assert repro.wait(timeout=240) != 0
    told = log.read_text()
    assert "synthesize: what it reads has changed while it ran" in told, told
    assert "params.yaml: synthesize.temperature was 1.0, and is 0.5" in told
    assert "distill.steps" not in told, "it is no knob of this stage's"
    assert "Traceback" not in told
    assert "synthesize" in run(["dvc", "status", "synthesize"], where).stdout
    run(["dvc", "repro", "synthesize"], where)
    assert yaml.safe_load(read(where / RECORD))["knobs"]["synthesize.temperature"] == 0.5


def test_a_run_that_is_made_out_to_be_anothers_is_found(pipeline: Path, tmp_path: Path) -> None:
    """A knob is changed in params.yaml and dvc.lock alike; `dvc commit` calls what other code made this code's."""
    where = shutil.copytree(pipeline, tmp_path / "project", symlinks=True)
    damping = yaml.safe_load((where / "params.yaml").read_text())["calibrate"]["damping"]
    change_params(where, {"calibrate": {"damping": damping * 2}})
    code = where / "pipeline/export/dequantized.py"
    code.write_text(code.read_text() + "\n# edited\n")
    run(["dvc", "commit", "--force"], where)
    assert "up to date" in run(["dvc", "status"], where).stdout
    done = run(["python", "-m", "pipeline.audit", "verify"], where, check=False)
    findings = set(done.stdout.splitlines()[:-1])
    knob = f"by dvc.lock the knob calibrate.damping was {damping * 2}, by its own record {damping}"
    for finding in (f"calibrate: {knob}", f"report: {knob}"):
        assert finding in findings, done.stdout
        findings.remove(finding)
    stages = {finding.split(":")[0] for finding in findings}
    of_variants = {f"{stage}@{v}" for stage in ("export", "evaluate") for v in ("rtn", "ptq", "student")}
    assert stages == of_variants | {"evaluate@teacher", "prove"}
    assert all("the md5 of pipeline/export was " in finding for finding in findings)


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
