"""What a stage runs with: pins that hold or are named, and a record that is the same for the same machine."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from pipeline.artifacts import environment
from pipeline.artifacts.inputs import File, Inputs
from stages import run

ROOT = Path(__file__).parents[3]
READS = Inputs(
    {"seed": 0, "distill.lr": 1e-4}, {"stages/distill.py": "a" * 32}, {"data/teacher/x": File("b" * 64, (1, 2, 3))}
)


def pinned(folder: Path, text: str) -> Path:
    file = folder / "versions.yaml"
    file.write_text(text)
    return file


def test_what_the_project_pins_is_installed():
    installed = environment.check(ROOT / "versions.yaml")
    assert installed["torch"] == version("torch")
    assert {"transformers", "lm_eval", "compressed-tensors"} <= installed.keys()


def test_every_library_with_another_version_or_none_is_named_with_the_way_out(tmp_path: Path):
    file = pinned(tmp_path, f'torch: "1.0"\nnumpy: "{version("numpy")}"\nno-such-library: "3"\n')
    with pytest.raises(ValueError, match=r"2 problem\(s\).*pip install --constraint constraints\.txt") as caught:
        environment.check(file)
    assert f"torch 1.0 is pinned, and {version('torch')} is installed" in str(caught.value)
    assert "no-such-library 3 is pinned, and none is installed" in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_another_build_of_the_same_version_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "version", {"torch": "2.13.0+cu126", "numpy": "2.4.60"}.__getitem__)
    assert environment.check(pinned(tmp_path, 'torch: "2.13.0"')) == {"torch": "2.13.0+cu126"}
    assert environment.check(pinned(tmp_path, 'torch: "2.13.0+cu126"')) == {"torch": "2.13.0+cu126"}
    with pytest.raises(ValueError, match=r"numpy 2\.4\.6 is pinned, and 2\.4\.60 is installed"):
        environment.check(pinned(tmp_path, 'numpy: "2.4.6"'))


KNOBS = {"pydoc": "evaluate: {text: pydoc}", "own": "evaluate: {text: prose}", "none": "seed: 0", "torn": "{"}


@pytest.mark.parametrize("text", KNOBS)
def test_python_is_held_to_its_pin_where_the_text_is_its_own(tmp_path: Path, text: str):
    """With the way out, which is then enough; other texts leave any Python alone."""
    torch = version("torch")
    file, knobs = pinned(tmp_path, f'# pins\npython: "3.9.1"\ntorch: "{torch}"\n'), tmp_path / "params.yaml"
    knobs.write_text(KNOBS[text])
    if text == "pydoc":
        with pytest.raises(
            ValueError, match=r"pins Python 3\.9\.1, and this is .*python -m pipeline\.artifacts\.environment"
        ):
            environment.check(file, knobs)
    else:
        assert {*environment.check(file, knobs)} == {"torch"}
    assert environment.pin_python(file) == "3.9.1"
    assert {*environment.check(file, knobs)} == {"torch"}
    assert file.read_text().startswith(f'# pins\npython: "{platform.python_version()}"\ntorch: ')
    before = file.read_bytes()
    assert environment.pin_python(file) == platform.python_version()
    assert file.read_bytes() == before


def test_a_file_without_a_pin_of_python_is_given_one(tmp_path: Path):
    file = pinned(tmp_path, 'torch: "2"')
    assert environment.pin_python(file) == ""
    assert file.read_text() == f'torch: "2"\npython: "{platform.python_version()}"\n'


@pytest.mark.parametrize("text", ["torch: 2.1", "[torch]", "torch", "torch: {a: b}", "{", ""])
def test_pins_that_are_none_are_named(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"versions\.yaml: "):
        environment.check(pinned(tmp_path, text))


def test_pins_that_are_missing_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"versions\.yaml: No such file or directory; `git restore "):
        environment.check(tmp_path / "versions.yaml")


def test_the_record_holds_what_torch_computes_with_and_is_the_same_each_time(tmp_path: Path):
    environment.record(tmp_path / "a/one.json", {"torch": torch.__version__}, READS)
    environment.record(tmp_path / "a/two.json", {"torch": torch.__version__}, READS)
    assert (tmp_path / "a/one.json").read_bytes() == (tmp_path / "a/two.json").read_bytes()
    record = json.loads((tmp_path / "a/one.json").read_text())
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["threads"] == torch.get_num_threads()
    assert record["libraries"] == {"torch": torch.__version__}
    assert record["processes"] == 1
    assert record["knobs"] == {"seed": 0, "distill.lr": 1e-4}
    assert record["code"] == {"stages/distill.py": "a" * 32}
    with_build = "+".join([version("torch").partition("+")[0], record["torch_build"]])
    assert torch.__version__ in (with_build, version("torch"))
    assert record["processor"]
    assert record["devices"] == ["cpu"]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    for name in ("avx512_bf16", "amx_bf16"):
        assert (name in record["instructions"]) == (f" {name}" in flags), "Linux says so too"


def test_the_record_holds_the_float_type(tmp_path: Path):
    for dtype, expected in (("bfloat16", "bfloat16"), ("", None)):
        environment.record(tmp_path / "record.json", {}, READS, dtype=dtype)
        assert json.loads((tmp_path / "record.json").read_text()).get("dtype") == expected


def test_gpus_are_of_the_record_of_a_stage_that_computes_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for accelerated, expected in ((True, ["GPU 0, CUDA 13.0", "GPU 1, CUDA 13.0"]), (False, ["cpu"])):
        environment.record(tmp_path / "record.json", {}, READS, accelerated)
        assert json.loads((tmp_path / "record.json").read_text())["devices"] == expected


def test_the_stages_that_compute_on_gpus_say_so():
    """They are those whose code asks for the device."""
    asking = ("forward.device()", "parallel.join(")
    for file in (ROOT / "stages").glob("*.py"):
        code = file.read_text()
        assert any(call in code for call in asking) == ("accelerated=True" in code), file.name


def test_a_stage_that_does_without_torch_does_not_load_it_for_the_record(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from pipeline.artifacts import environment, inputs; "
        "environment.record(Path(sys.argv[1]), {}, inputs.Inputs({}, {}, {})); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.json")], cwd=ROOT, env={**os.environ})
    assert done.returncode == 0
    assert "threads" not in json.loads((tmp_path / "r.json").read_text())


def test_the_processor_is_named_as_the_system_names_it(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Chip: 9000\n\nprocessor\t: 1\nmodel name\t: B\n")
    assert environment.processor(tmp_path / "cpuinfo") == "A Chip: 9000"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp\n")
    assert environment.processor(tmp_path / "cpuinfo")
    assert environment.processor(tmp_path / "none")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage under way in a folder with pins, with the file for its record."""
    monkeypatch.chdir(tmp_path)
    pinned(tmp_path, f'torch: "{version("torch").partition("+")[0]}"')
    monkeypatch.setattr(sys, "argv", ["export", "--out", "x", "--environment", "ran/export.json"])
    return tmp_path / "ran/export.json"


def test_a_stage_writes_its_record_down_when_it_begins(stage: Path):
    assert run.begin("export", "out").out == "x"
    assert json.loads(stage.read_text())["libraries"] == {"torch": version("torch")}


def test_of_several_processes_the_first_writes_it(stage: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    run.begin("export", "out")
    assert not stage.exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run.begin("export", "out")
    assert json.loads(stage.read_text())["processes"] == 2


def test_a_stage_with_another_version_ends_in_one_message_before_any_work(stage: Path):
    pinned(Path.cwd(), 'torch: "1.0"')
    with pytest.raises(SystemExit, match=r"export: versions\.yaml has 1 problem"):
        run.main("export", lambda: run.begin("export", "out").out)
    assert not stage.exists()
