"""What a user can get wrong, at the true entry points: one clear error, no traceback, nothing that looks finished."""

import json
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.integration.conftest import Stage, run_stage_alone
from tests.integration.refusals import CALIBRATE, DISTILL, EVALUATE


def test_all_bad_knobs_are_named_at_once(refused: Stage) -> None:
    knobs = {"distill.freeze": "vo", "calibrate.method": "gtpq", "distill.stepz": 3, "synthesize.batch": "many"}
    knobs |= {"export.formats": ["gguff"], "teacher.source": "hubb", "distill.lr": True}
    message = refused("teacher", knobs)
    expected = [
        "7 bad knob",
        "did you mean 'ov'",
        "did you mean 'gptq'",
        "distill.steps",
        "synthesize.batch: expected int",
    ]
    expected += ["export.formats", "did you mean 'hub'", "distill.lr: expected float"]
    assert [part for part in expected if part not in message] == []


def test_in_a_process_of_its_own_a_stage_is_refused_with_the_same_line(refused: Stage, desk: Path) -> None:
    message = refused("calibrate", {"calibrate.sequences": 500}, **CALIBRATE)
    alone = run_stage_alone(desk, "calibrate", **CALIBRATE, out="made/out")
    assert (alone.returncode, alone.stdout, alone.stderr) == (1, "", message)
    assert not (desk / "made").exists()


def test_libraries_in_other_versions_than_the_pinned_ones(refused: Stage, desk: Path) -> None:
    pins = desk / "versions.yaml"
    pins.write_text(pins.read_text().replace('transformers: "', 'transformers: "1'))
    message = refused("export", teacher="data/teacher", corpus="data/corpus", quantized="data/rtn")
    assert message.startswith("export: versions.yaml has 1 problem(s); `pip install --constraint constraints.txt ")
    assert f"transformers 1{version('transformers')} is pinned, and {version('transformers')} is installed" in message


def test_more_sequences_than_the_corpus_has(refused: Stage) -> None:
    assert "calibrate.sequences: asks for 500" in refused("calibrate", {"calibrate.sequences": 500}, **CALIBRATE)


def test_a_corpus_smaller_than_the_knobs_say(refused: Stage) -> None:
    """The knobs agree with each other, but the corpus at hand is an older and smaller one."""
    message = refused("calibrate", {"calibrate.sequences": 90, "synthesize.sequences": 200}, **CALIBRATE)
    assert "90 sequences are asked for, but the corpus has 54" in message


def test_a_group_that_does_not_divide_the_inputs(refused: Stage) -> None:
    scheme = {
        "weights": {"bits": 4, "symmetric": True, "group": 32},
        "activations": {"bits": 8, "symmetric": True, "dynamic": True, "observer": "split", "percentile": 99.99},
        "kv_cache": {"bits": 4, "symmetric": True, "group": 5},
        "overrides": [
            {"match": "down", "weights": {"group": 48}},
            {"match": "c_proj", "weights": {"bits": 8}},
        ],
    }
    message = refused("calibrate", {"scheme": scheme, "export.formats": ["compressed-tensors"]}, **CALIBRATE)
    assert message.startswith("calibrate: the scheme does not fit LlamaForCausalLM:\n")
    assert "a group of 48 does not divide the 64 inputs of model.layers.*.mlp.down_proj (down)" in message
    assert "kv_cache.group 5 does not divide the 16 key values of a token" in message
    assert "nothing is called 'c_proj'; the model has model.layers.*.self_attn.q_proj (q)" in message
    assert len(message.splitlines()) == 4


def test_asymmetric_weights_for_a_format_that_does_not_hold_them(refused: Stage, desk: Path) -> None:
    scheme = {
        "weights": {"bits": 4, "symmetric": False, "group": 0},
        "activations": {"bits": 0, "symmetric": True, "dynamic": False, "observer": "split", "percentile": 99.99},
        "kv_cache": {"bits": 0, "symmetric": True, "group": 0},
    }
    export = {"teacher": "data/teacher", "corpus": "data/corpus", "quantized": "data/rtn"}
    for stage, paths in (("calibrate", CALIBRATE), ("export", export)):
        message = refused(stage, {"scheme": scheme}, **paths)
        assert (
            "compressed-tensors and gguf of export.formats hold no asymmetric weights; take [onnx, mlx, dequantized]"
            in message
        )


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
    message = refused("teacher", {"teacher.path": "model.gguf", "teacher.sha256": "0" * 64})
    assert f"teacher.sha256 is {'0' * 64}" in message
    assert "set teacher.sha256 to that file's, or to ''" in message


def test_a_sha256_of_a_folder(refused: Stage, tiny_teacher: Path) -> None:
    message = refused("teacher", {"teacher.path": str(tiny_teacher), "teacher.sha256": "0" * 64})
    assert "a folder has no sha256; set teacher.sha256 to ''" in message
    assert len(message.splitlines()) == 1


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
    with (desk / "data/targets/targets.safetensors").open("ab") as file:
        file.write(b"x")
    assert "targets.safetensors: its content has changed" in refused("distill", **DISTILL)
    manifest = desk / "data/targets/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))
    assert "version 99" in refused("distill", **DISTILL)
    assert "data/nowhere" in refused("distill", **{**DISTILL, "targets": "data/nowhere"})


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
