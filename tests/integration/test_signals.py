"""analyze, distill with the freeze policy auto, and inspect, run as dvc.yaml runs them, on artifacts made by hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from pipeline.artifacts import contract
from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.knobs.scheme import from_short
from pipeline.models import saved
from tests import tiny
from tests.families import family

ROOT = Path(__file__).parents[2]
SEQUENCES, LENGTH = 16, 24
KNOBS = {
    "synthesize": {"sequences": SEQUENCES, "held_out": 4, "length": LENGTH},
    "prove": {"prompts": 4},
    "calibrate": {"sequences": 8},
    "analyze": {"sequences": 4, "sensitivity_sequences": 2},
    "distill": {"freeze": "auto", "steps": 2, "batch": 4},
    "inspect": {"sensitivity_sequences": 1},
    "evaluate": {"benchmarks": str(ROOT / "data/benchmarks")},
}
INPUTS = ("--teacher", "data/teacher", "--corpus", "data/corpus")
VARIANTS = ("--variant", "ptq=data/calibration", "--variant", "rtn=data/rtn")


def workspace(where: Path, name: str) -> Path:
    """A folder with a tiny teacher of a family, a corpus, two calibrated models and knobs to match."""
    with contract.writing(where / "data/teacher", contract.TEACHER) as draft:
        family(name).save_pretrained(draft.path)
        tiny.tokenizer().save_pretrained(draft.path)
    tokens = torch.randint(3, 259, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((SEQUENCES,), LENGTH)
    Corpus(tokens, lengths, torch.full((SEQUENCES,), 3), torch.full((SEQUENCES,), 4), 4).save(where / "data/corpus", {})
    for folder, method in (("calibration", "gptq"), ("rtn", "rtn")):
        model, mask = saved.load_model(where / "data/teacher"), valid_mask(lengths[:8], LENGTH)
        options = Options(method, {}, batch=4, measure=False)
        done = calibrate(model, tokens[:8], mask, from_short("W4A16"), options, None, lambda: None)
        done.model.save(where / "data" / folder, {"method": method}, {})
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, knobs in KNOBS.items():
        tree[section].update(knobs)
    (where / "params.yaml").write_text(yaml.safe_dump(tree))
    shutil.copy2(ROOT / "versions.yaml", where)
    return where


def run(where: Path, stage: str, *arguments: str) -> str:
    """Run a stage in the folder; returns what it printed, its errors after that."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def distill(where: Path) -> str:
    arguments = ("--calibration", "data/calibration", "--signals", "data/signals", "--out", "data/student")
    run(where, "targets", *INPUTS, "--text", "nowhere", "--out", "data/targets")
    return run(where, "distill", "--teacher", "data/teacher", "--targets", "data/targets", *arguments)


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = workspace(tmp_path_factory.mktemp("signals"), "llama")
    run(where, "analyze", *INPUTS, *VARIANTS, "--out", "data/signals")
    return where


def test_analyze_writes_what_dvc_yaml_plots_and_the_same_bytes_each_time(analyzed: Path) -> None:
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    for entry in plots:
        ((_, plot),) = entry.items()
        for file, columns in plot["y"].items():
            if file.startswith("data/signals/"):
                header = pd.read_csv(analyzed / file).columns
                assert {*columns, plot["x"]} <= {*header}, file
    run(analyzed, "analyze", *INPUTS, *VARIANTS, "--out", "data/again")
    assert manifest(analyzed / "data/again") == manifest(analyzed / "data/signals")


def test_the_suggestion_has_its_evidence(analyzed: Path) -> None:
    facts = manifest(analyzed / "data/signals")["facts"]
    assert facts["variants"] == ["float", "ptq", "rtn"]
    assert facts["suggested_by"] == "ptq"
    suggestion = json.loads((analyzed / "data/signals/suggestion.json").read_text())
    assert suggestion["freeze"]["ptq"]["policy"] == facts["suggested_freeze"]
    assert {*suggestion["freeze"]["ptq"]["evidence"]} == {"o", "v"}
    bits = suggestion["bits"]
    assert bits["average"] <= bits["asked_average"] == 5.0
    assert bits["predicted_kl"] < bits["predicted_kl_uniform"]["5"]
    assert yaml.safe_load((analyzed / "data/signals/plan.yaml").read_text())["scheme"]["overrides"]


def test_auto_freezes_what_the_signals_suggest_and_inspect_looks_at_the_student(analyzed: Path) -> None:
    policy = manifest(analyzed / "data/signals")["facts"]["suggested_freeze"]
    assert policy != "none"
    assert f"distill: freeze auto: {policy}, as the gradients of ptq suggest" in distill(analyzed)
    facts = manifest(analyzed / "data/student")["facts"]
    assert (facts["freeze"], facts["freeze_knob"], facts["method"]) == (policy, "auto", "gptq")
    assert {name.rsplit(".", 1)[-1] for name in facts["frozen"]} == {f"{role}_proj" for role in policy}
    run(analyzed, "inspect", *INPUTS, "--variant", "student=data/student", "--out", "data/signals_student")
    table = pd.read_parquet(analyzed / "data/signals_student/signals.parquet")
    assert {*table.variant} == {"float", "student"}
    assert "one_layer_kl" in {*table.statistic}


def test_without_q_k_v_and_o_auto_freezes_nothing_and_says_so(tmp_path: Path) -> None:
    where = workspace(tmp_path, "mamba")
    run(where, "analyze", *INPUTS, *VARIANTS, "--out", "data/signals")
    said = distill(where)
    assert "distill: freeze auto: none, as the model has no layer with q, k, v, o that can be told apart\n" in said
    assert manifest(where / "data/student")["facts"]["freeze"] == "none"
    assert manifest(where / "data/student")["facts"]["frozen"] == {}
