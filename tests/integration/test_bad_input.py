"""What a user can get wrong, at the true entry points: one clear error, no traceback, nothing that looks finished."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.integration.conftest import ROOT, environment

Stage = Callable[..., str]


@pytest.fixture
def desk(pipeline: Path, tmp_path: Path) -> Path:
    """A folder to run stages in: the pipeline's knobs, and its artifacts to break."""
    shutil.copy2(pipeline / "params.yaml", tmp_path)
    shutil.copytree(pipeline / "data", tmp_path / "data", symlinks=True)
    return tmp_path


@pytest.fixture
def refused(desk: Path) -> Stage:
    """Run a stage that must fail after some knobs are set; gives its message, with `out` proven untouched."""

    def run(stage: str, /, knobs: dict | None = None, **paths: str) -> str:
        params = yaml.safe_load((desk / "params.yaml").read_text())
        for name, value in (knobs or {}).items():
            section, _, knob = name.partition(".")
            params[section][knob] = value
        (desk / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-m", f"stages.{stage}"]
        for name, path in {**paths, "out": "made/out"}.items():
            command += [f"--{name}", path]
        env = {**environment(), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert not list(desk.glob("made/*"))
        return done.stderr

    return run


DISTILL = {"teacher": "data/teacher", "corpus": "data/corpus", "calibration": "data/calibration"}
EVALUATE = {"teacher": "data/teacher", "corpus": "data/corpus", "model": "data/int4/ptq"}
CALIBRATE = {"teacher": "data/teacher", "corpus": "data/corpus", "rtn": "made/rtn"}


def test_all_bad_knobs_are_named_at_once(refused: Stage) -> None:
    knobs = {"distill.freeze": "vo", "calibrate.method": "gtpq", "distill.stepz": 3, "synthesize.batch": "many"}
    knobs |= {"export.format": "gguff", "teacher.source": "hubb", "distill.lr": True}
    message = refused("teacher", knobs)
    expected = [
        "7 bad knob",
        "did you mean 'ov'",
        "did you mean 'gptq'",
        "distill.steps",
        "synthesize.batch: expected int",
    ]
    expected += ["export.format", "did you mean 'hub'", "distill.lr: expected float"]
    assert [part for part in expected if part not in message] == []


def test_more_sequences_than_the_corpus_has(refused: Stage) -> None:
    assert "calibrate.sequences: asks for 500" in refused("calibrate", {"calibrate.sequences": 500}, **CALIBRATE)


def test_a_corpus_smaller_than_the_knobs_say(refused: Stage) -> None:
    """The knobs agree with each other, but the corpus at hand is an older and smaller one."""
    message = refused("calibrate", {"calibrate.sequences": 90, "synthesize.sequences": 200}, **CALIBRATE)
    assert "90 sequences are asked for, but the corpus has 54" in message


def test_truncated_safetensors(refused: Stage, desk: Path, tiny_teacher: Path) -> None:
    broken = desk / "broken"
    shutil.copytree(tiny_teacher, broken)
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    message = refused("teacher", {"teacher.path": str(broken)})
    assert str(broken) in message
    assert "truncated" in message


def test_truncated_gguf_and_wrong_sha256(refused: Stage, desk: Path) -> None:
    (desk / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "model.gguf" in refused("teacher", {"teacher.path": "model.gguf", "teacher.sha256": ""})
    assert "sha256" in refused("teacher", {"teacher.path": "model.gguf", "teacher.sha256": "0" * 64})


def test_hub_that_cannot_be_reached(refused: Stage) -> None:
    message = refused("teacher", {"teacher.source": "hub", "teacher.repo": "nobody/nothing"})
    assert "hub cannot give 'nobody/nothing'" in message
    assert "teacher.source" in message


def test_pattern_that_matches_no_linear(refused: Stage) -> None:
    message = refused("distill", {"distill.freeze": ["*.wq"]}, **DISTILL)
    assert "*.wq" in message
    assert "model.layers.*.self_attn.q_proj (q)" in message


def test_nan_in_training_names_step_and_layer(refused: Stage, desk: Path) -> None:
    codes = desk / "data/calibration/floats.safetensors"
    tensors = load_file(codes)
    tensors["model.layers.1.input_layernorm.weight"].fill_(float("nan"))
    save_file(tensors, codes)
    manifest = desk / "data/calibration/manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["floats.safetensors"] = subprocess.check_output(["sha256sum", codes], text=True).split()[0]
    manifest.write_text(json.dumps(content))
    message = refused("distill", **DISTILL)
    assert "at step 1" in message
    assert "model.layers.1 is the first layer" in message


def test_artifact_of_another_kind_version_and_content(refused: Stage, desk: Path) -> None:
    assert "holds 'corpus'" in refused("distill", **{**DISTILL, "calibration": "data/corpus"})
    with (desk / "data/corpus/corpus.safetensors").open("ab") as file:
        file.write(b"x")
    assert "corpus.safetensors: its content has changed" in refused("distill", **DISTILL)
    manifest = desk / "data/corpus/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))
    assert "version 99" in refused("distill", **DISTILL)
    assert "data/nowhere" in refused("distill", **{**DISTILL, "corpus": "data/nowhere"})


def test_benchmarks_that_are_missing_or_malformed(refused: Stage, desk: Path) -> None:
    file = desk / "data/benchmarks/arc_easy.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = '{"question": "?"}'
    lines[4] = "nonsense"
    file.write_text("\n".join(lines) + "\n")
    message = refused("evaluate", **EVALUATE)
    assert "arc_easy.jsonl, line 3: lacks the field 'choices'" in message
    assert "arc_easy.jsonl, line 5: not JSON" in message
    file.unlink()
    assert "arc_easy.jsonl does not exist" in refused("evaluate", **EVALUATE)
    assert "did you mean 'arc_easy'" in refused("evaluate", {"evaluate.tasks": ["arc_eazy"]}, **EVALUATE)
    message = refused("evaluate", {"evaluate.tasks": ["piqa"], "evaluate.benchmarks": "nowhere"}, **EVALUATE)
    assert "'nowhere' is not a folder" in message
