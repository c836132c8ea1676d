"""The proofs of the tiny pipeline's exports, and exports that are not what was trained."""

import importlib.util
import json
import math
from pathlib import Path

import gguf
import pytest

from pipeline.artifacts import contract
from pipeline.runtimes.table import RUNTIMES
from tests import tiny
from tests.integration.conftest import change_params, run_stage

PATHS = {"teacher": "data/teacher", "corpus": "data/corpus", "variant": "student=data/student", "int4": "data/int4"}
FORMATS = ("compressed-tensors", "gguf", "onnx")


def test_each_export_of_the_student_is_proven_and_the_report_shows_it(pipeline: Path) -> None:
    names = {file.stem for file in (pipeline / "data/proof").glob("*.json")} - {"manifest"}
    assert names == {"student", *(f"student-{name}" for name in FORMATS)}
    page = (pipeline / "data/report/index.html").read_text()
    summary = json.loads((pipeline / "data/report/summary.json").read_text())
    usage = (pipeline / "data/report/usage.js").read_text()
    for runtime, format_name in (
        ("transformers", "compressed-tensors"),
        ("llama.cpp", "gguf"),
        ("onnxruntime", "onnx"),
        ("onnxruntime-float", "onnx"),
        ("onnxruntime-genai", "onnx"),
    ):
        numbers = json.loads((pipeline / f"data/proof/student-{format_name}.json").read_text())
        assert all(math.isfinite(value) for value in numbers.values())
        assert numbers[f"positions.{runtime}"] == 2 * 47
        assert numbers[f"texts.{runtime}"] == 200
        name = f"proof.{format_name}.{runtime}.kl_student.student"
        assert summary[name] == numbers[f"kl_student.{runtime}"] < summary["kl.student"]
        assert f"<td>{runtime}</td>" in page
        assert f"{runtime} {_version(runtime)}" in page
        speeds = json.loads((pipeline / f"runs/speed/student-{format_name}.json").read_text())
        assert min(speeds[runtime][part] for part in ("prompt", "decode")) > 0
        assert f'"student-{format_name}"' in usage


def _version(runtime: str) -> str:
    from importlib.metadata import version

    return version(RUNTIMES[runtime].package)


def test_the_same_export_has_the_same_proof(desk: Path) -> None:
    done = run_stage(desk, "prove", **PATHS, out="made/proof")
    assert done.returncode == 0, done.stderr
    assert "prove student, gguf: the file holds the trained numbers; llama.cpp, to the student with" in done.stdout
    for file in (desk / "made/proof").iterdir():
        assert file.read_bytes() == (desk / "data/proof" / file.name).read_bytes(), file.name


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime_qnn") is None, reason="onnxruntime-qnn is not installed")
@pytest.mark.parametrize("one_binary", [True, False])
def test_what_is_compiled_for_an_npu_is_proven_in_the_simulator(desk: Path, one_binary: bool) -> None:
    formats = ["compressed-tensors", "qnn"]
    knobs = {"formats": formats, "qnn_arch": "v79", "qnn_chunk": 32, "qnn_context": 64, "qnn_shared": one_binary}
    change_params(desk, {"export": knobs})
    paths = {"teacher": "data/teacher", "corpus": "data/corpus", "quantized": "data/student"}
    done = run_stage(desk, "export", **paths, out="made/int4/student")
    assert done.returncode == 0, done.stderr
    folder = desk / "made/int4/student/qnn"
    assert len([*folder.glob("*.bin")]) == (1 if one_binary else 2)
    assert contract.reading(folder, contract.INT4)["format"] == "qnn"
    done = run_stage(desk, "prove", **PATHS | {"int4": "made/int4"}, out="made/proof")
    assert done.returncode == 0, done.stderr
    assert "prove student, qnn: the file holds the trained numbers; qnn, to the student with inputs on" in done.stdout
    numbers = json.loads((desk / "made/proof/student-qnn.json").read_text())
    assert numbers["positions.qnn"] == 47
    assert 0 < numbers["kl_student.qnn"] < 2e-3


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="the extra [executorch] is not installed")
def test_what_is_written_for_a_phone_is_proven_in_executorch(desk: Path) -> None:
    change_params(desk, {"export": {"formats": ["compressed-tensors", "executorch"]}})
    paths = {"teacher": "data/teacher", "corpus": "data/corpus", "quantized": "data/student"}
    done = run_stage(desk, "export", **paths, out="made/int4/student")
    assert done.returncode == 0, done.stderr
    assert contract.reading(desk / "made/int4/student/executorch", contract.INT4)["format"] == "executorch"
    done = run_stage(desk, "prove", **PATHS | {"int4": "made/int4"}, out="made/proof")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((desk / "made/proof/student-executorch.json").read_text())
    assert 0 < numbers["kl_student.executorch"] < 2e-3


def test_all_that_falls_short_is_named_and_nothing_is_left(desk: Path) -> None:
    """A weight of one file and the tokenizer of the other; their manifests tell of them as they are."""
    reader = gguf.GGUFReader(_own(desk, "gguf/model.gguf"), "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    tensor.data[2, 7] ^= 1
    reader.data.flush()
    for file in (desk / "data/int4/student/compressed-tensors").glob("token*.json"):
        file.unlink()
    tiny.tokenizer().save_pretrained(desk / "data/int4/student/compressed-tensors")
    for name in FORMATS:
        _believed(desk / "data/int4/student" / name)
    done = run_stage(desk, "prove", **PATHS, out="made/proof")
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert "2 proof(s) fall short" in done.stderr
    assert "student, gguf: 1 tensors read back from the file are not those that were written: " in done.stderr
    assert "student, compressed-tensors: transformers: its tokenizer gives other ids" in done.stderr
    assert not list(desk.glob("made/*"))


def _own(desk: Path, name: str) -> Path:
    """A file of an export that may be written to, as DVC's links may not."""
    file = desk / "data/int4/student" / name
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    return file


def _believed(folder: Path) -> None:
    file = folder / contract.MANIFEST
    manifest = contract.read_json(file)
    manifest["files"] = {name: contract.sha256(folder / name) for name in manifest["files"]}
    file.unlink()
    contract.write_json(file, manifest)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"export": {"formats": ["compressed-tensors", "dequantized"]}}, "data/int4/student/dequantized is no int4"),
        ({"prove": {"tokens": 600}}, "prove.tokens: a prompt of 16 tokens and 600 more are over the 512 of"),
        ({"prove": {"sequences": 7, "prompts": 9}}, "prove.sequences: 7 are more than the 6 of synthesize.held_out"),
        ({"prove": {"variants": ["student", "student"]}}, "prove.variants: each once"),
        ({"prove": {"variants": ["teacher"]}}, "prove.variants[0]: unknown value 'teacher'"),
    ],
)
def test_what_cannot_be_proven_is_refused(desk: Path, knobs: dict, message: str) -> None:
    change_params(desk, knobs)
    done = run_stage(desk, "prove", **PATHS, out="made/proof")
    assert done.returncode
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(desk.glob("made/*"))


def test_a_runtime_that_is_not_installed_is_told_with_the_command(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "llama.cpp", RUNTIMES["llama.cpp"]._replace(package="no-such-package"))
    done = run_stage(desk, "prove", **PATHS, out="made/proof")
    assert "prove: llama.cpp is not installed (no-such-package)" in done.stderr
    assert "pip install" in done.stderr
