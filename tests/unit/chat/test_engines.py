"""Which folders a chat opens, and what it says of the others."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifacts import contract
from pipeline.chat import __main__ as command
from pipeline.chat.engines import ENGINES, open_folder

ROOT = Path(__file__).parents[3]


def folder(where: Path, facts: dict) -> Path:
    with contract.writing(where, contract.INT4) as draft:
        (draft.path / "model.bin").write_bytes(b"weights")
        draft.facts = facts
    return where


def test_a_format_that_no_engine_opens_is_told_with_one_beside_it(tmp_path: Path):
    packed = folder(tmp_path / "compressed-tensors", {"format": "compressed-tensors"})
    with pytest.raises(
        ValueError, match="has the format 'compressed-tensors', and a chat opens gguf, onnx; see export"
    ):
        open_folder(packed)
    beside = folder(tmp_path / "gguf", {"format": "gguf"})
    with pytest.raises(ValueError, match=f"beside it lies {beside}"):
        open_folder(packed)
    with pytest.raises(ValueError, match=f"it has no manifest.json; it holds {packed}, {beside}"):
        open_folder(tmp_path)


def test_a_folder_that_was_changed_is_not_opened(tmp_path: Path):
    changed = folder(tmp_path / "gguf", {"format": "gguf"})
    (changed / "model.bin").write_bytes(b"weigh")
    with pytest.raises(ValueError, match=r"model.bin: its content has changed"):
        open_folder(changed)


def test_a_folder_as_the_hub_gives_it_is_opened_and_one_that_was_cut_off_is_not(gguf: Path, tmp_path: Path):
    """As `hf download --local-dir` leaves it: with the card, the hub's own file, and notes of the download."""
    downloaded = shutil.copytree(gguf, tmp_path / "downloaded")
    for name in ("README.md", ".gitattributes", ".cache/huggingface/.gitignore"):
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_text("of the hub")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.chat", str(downloaded), "--max-tokens", "2", "--threads", "1"],
        cwd=ROOT,
        input="t\n",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
    file = downloaded / "model.gguf"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"not as it was written.*\n  model.gguf: its content has changed"):
        open_folder(downloaded)


@pytest.mark.parametrize(("chosen", "module"), [("gguf", "xllamacpp"), ("onnx", "onnxruntime_genai")])
def test_a_runtime_that_is_not_installed_is_told_with_how_to_install_it(
    chosen: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    package = ENGINES[chosen].package
    with pytest.raises(
        ValueError, match=f"{chosen} needs {package}.*`pip install --constraint constraints.txt {package}`"
    ):
        open_folder(folder(tmp_path / chosen, {"format": chosen}))


def test_all_numbers_out_of_range_are_told_at_once_before_a_folder_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    options = ["--temperature", "-1", "--top-p", "0", "--max-tokens", "0", "--threads", "-1", "--context", "-5"]
    monkeypatch.setattr(sys, "argv", ["chat", "nowhere", *options])
    with pytest.raises(SystemExit) as ended:
        command.main()
    lines = str(ended.value).splitlines()
    assert [line.split()[-1] for line in lines] == ["-1.0", "0.0", "0", "-1", "-5"]
    assert lines[0].startswith("chat: --temperature must be 0 or more")
