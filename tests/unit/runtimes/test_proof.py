"""A sound export passes, and one that is not what was trained fails, each for its reason."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.runtimes import hugging_face, proof, table
from pipeline.runtimes.opened import Opened
from pipeline.runtimes.references import References
from tests import tiny
from tests.unit.export.quantized import Q
from tests.unit.runtimes.conftest import OPENED, Exported


@pytest.mark.parametrize(("name", "format_name"), OPENED)
def test_a_sound_export_passes_with_all_its_numbers(
    name: str, format_name: str, exported: Exported, against: References
):
    proven = proof.prove(exported(format_name), format_name, against)
    assert proven.problems == []
    assert all(math.isfinite(value) for value in proven.numbers.values())
    numbers = {key.removesuffix(f".{name}"): value for key, value in proven.numbers.items()}
    assert numbers["positions"] == (23 if table.RUNTIMES[name].limits else 23 + 19)
    assert numbers["texts"] == 200
    held_to = "student" if table.RUNTIMES[name].on_grids else "in_float"
    assert numbers[f"kl_{held_to}"] < numbers["kl_teacher"]
    assert -1e-6 <= numbers[f"kl_{held_to}"] < 2e-3
    if table.RUNTIMES[name].exact:
        assert numbers["logit_difference"] < 1e-5
        assert (numbers["top1_in_float"], numbers["same_continuations"]) == (1, 1)
    elif name == "llama.cpp":
        assert 0 < numbers["log_probability_difference"] < 1
    else:
        assert numbers["logit_difference"] < 1e-2
    assert proven.speeds[name].keys() == {"prompt", "decode", "threads", "megabytes"}
    again = proof.prove(exported(format_name), format_name, against)
    assert again.numbers == proven.numbers


def test_the_student_itself_is_measured_on_the_same_text(against: References):
    numbers = proof.of_student(against)
    assert numbers["student.kl_teacher"] != numbers["in_float.kl_teacher"] > 0
    assert 0 < numbers["in_float.kl_student"] < numbers["in_float.kl_teacher"]


def block(folder: Path) -> None:
    """Change a code in one block."""
    _in_gguf(folder, "blk.1.ffn_up.weight", lambda data: data[3].__setitem__(5, data[3, 5] ^ 0x10))


def constant(folder: Path) -> None:
    _in_gguf(folder, "blk.0.attn_q.weight", lambda data: data.fill(0))


def swapped(folder: Path) -> None:
    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    one, other = (_tensor(reader, f"blk.{i}.ffn_gate.weight").data for i in (0, 1))
    kept = one.copy()
    one[:] = other
    other[:] = kept
    one.base.flush() if hasattr(one.base, "flush") else None


def _tensor(reader: gguf.GGUFReader, name: str) -> gguf.ReaderTensor:
    return next(tensor for tensor in reader.tensors if tensor.name == name)


def _in_gguf(folder: Path, name: str, change: Callable) -> None:
    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    change(_tensor(reader, name).data)
    reader.data.flush()


def packed(folder: Path) -> None:
    _in_safetensors(folder, lambda tensors: tensors[f"{Q}.weight_packed"][7, 2].bitwise_xor_(1 << 13))


def norm(folder: Path) -> None:
    _in_safetensors(folder, lambda tensors: tensors["model.norm.weight"].mul_(1.5))


def foreign(folder: Path) -> None:
    _in_safetensors(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(3)}))


def missing(folder: Path) -> None:
    _in_safetensors(folder, lambda tensors: tensors.pop("model.norm.weight"))


def bit(folder: Path) -> None:
    _in_safetensors(folder, lambda tensors: tensors[f"{Q}.weight"][3, 5].mul_(1.001))


def _in_safetensors(folder: Path, change: Callable) -> None:
    tensors = {name: values.clone() for name, values in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merges(folder: Path) -> None:
    """Another tokenizer beside the weights, of the same size."""
    tiny.tokenizer().save_pretrained(folder)


@pytest.mark.parametrize(
    ("format_name", "damage", "message"),
    [
        ("gguf", block, r"1 tensors read back .* \['model.layers.1.mlp.up_proj.weight'\]$"),
        (
            "gguf",
            constant,
            r"1 tensors read back .*; constant in the file: \['model.layers.0.self_attn.q_proj",
        ),
        ("gguf", swapped, r"2 tensors read back"),
        ("compressed-tensors", packed, rf"codes or scales read back from the export differ in 1 weights: \['{Q}'\]"),
        ("compressed-tensors", norm, r"transformers: the reloaded model's state differs in 1 tensors"),
        ("compressed-tensors", foreign, r"transformers: .*has no place for model.extra.weight"),
        ("compressed-tensors", missing, r"transformers: .*lacks model.norm.weight"),
        ("dequantized", bit, rf"transformers: the reloaded weights are not codes times scales in 1 linears: \['{Q}'\]"),
        (
            "compressed-tensors",
            merges,
            r"its tokenizer gives other ids than the teacher's for \d+ of 200",
        ),
    ],
)
def test_a_file_that_was_tampered_with_fails(
    format_name: str, damage: Callable, message: str, exported: Exported, against: References, tmp_path: Path
):
    folder = shutil.copytree(exported(format_name), tmp_path / "export")
    damage(folder)
    (problem,) = proof.prove(folder, format_name, against).problems
    assert re.search(message, problem), problem
    assert "\n" not in problem


def test_other_merges_and_foreign_tensors_in_a_gguf_fail(exported: Exported, against: References, tmp_path: Path):
    for name in ("merges", "foreign"):
        folder = shutil.copytree(exported("gguf"), tmp_path / name)
        _rewritten(exported("gguf") / "model.gguf", folder / "model.gguf", name)
        (problem,) = proof.prove(folder, "gguf", against).problems
        assert {
            "merges": "llama.cpp: its tokenizer gives other ids than the teacher's",
            "foreign": "the file holds, which are none of the model's, ['blk.0.extra.weight']",
        }[name] in problem


def _rewritten(source: Path, out: Path, what: str) -> None:
    """A GGUF with other merges, or one tensor more."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = field.contents()
        if field.name == "tokenizer.ggml.merges" and what == "merges":
            value = ["t h"]
        if field.name == "tokenizer.ggml.tokens" and what == "merges":
            value = [*value[:-1], "th"]
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if what == "foreign":
        writer.add_tensor("blk.0.extra.weight", reader.tensors[0].data, raw_dtype=reader.tensors[0].tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("format_name", ["gguf", "compressed-tensors", "dequantized"])
@pytest.mark.parametrize("torn", ["empty", "short", "absent"])
def test_a_torn_file_is_told_in_a_line(
    format_name: str, torn: str, exported: Exported, against: References, tmp_path: Path
):
    folder = shutil.copytree(exported(format_name), tmp_path / "export")
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.gguf")):
        content = file.read_bytes()
        file.unlink()
        if torn != "absent":
            file.write_bytes(content[: -len(content) // 2] if torn == "short" else b"")
    (problem,) = proof.prove(folder, format_name, against).problems
    assert "\n" not in problem


def test_a_folder_of_another_model_is_refused(exported: Exported, against: References, tmp_path: Path):
    """By its vocabulary and its context, before anything is compared."""
    folder = shutil.copytree(exported("dequantized"), tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))
    (problem,) = proof.prove(folder, "dequantized", against).problems
    assert problem.startswith("transformers: it is for texts of 20 tokens, and is held to texts of 28")
    opened = hugging_face.open_export(exported("dequantized"), proof.Asked(64, 1, 1))
    opened.vocabulary = 300
    with pytest.raises(ValueError, match="its vocabulary has 300 tokens, the teacher's 259"):
        proof._check_fits(opened, against)


class Blurred(hugging_face.InTransformers):
    """Logits that are a little off."""

    def predictions(self, tokens: torch.Tensor):
        noise = torch.Generator().manual_seed(0)
        for predicted in super().predictions(tokens):
            blur = torch.randn(predicted.values.shape, generator=noise)
            yield predicted._replace(values=predicted.values + BLUR * blur)


BLUR = 0.6


def blurred(folder: Path, asked: object) -> Opened:
    opened = hugging_face.open_export(folder, proof.Asked(64, 1, 1))
    assert isinstance(opened, hugging_face.InTransformers)
    return Blurred(opened.model, opened.tokenizer)


@pytest.mark.parametrize("exact", [True, False])
def test_predictions_that_are_off_fail_by_each_bound(
    exact: bool, exported: Exported, against: References, monkeypatch: pytest.MonkeyPatch
):
    runtime = table.RUNTIMES["transformers"]._replace(open=blurred, exact=exact)
    monkeypatch.setitem(table.RUNTIMES, "transformers", runtime)
    problems = proof.prove(exported("dequantized"), "dequantized", against).problems
    told = " ".join(problems)
    if exact:
        assert len(problems) == 1
        assert re.search(r"logits differ from the student's by \S+ of the largest, over 0.001", told)
    else:
        assert re.search(r"likeliest token is the student's at \S+% of the positions where that leads by 0.2", told)
        assert re.search(r"KL from the student is \S+ nats a token, over 0.01", told)
