"""The commands that the documents show, run on the tiny model as far as it can; of each other one, where it is run."""

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from tests.integration.conftest import ROOT, enter_stage, environment

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    ((?:dvc|python -m|make|prefect|torchrun) .*)$", re.MULTILINE)
CODE = re.compile(r"^    (from|import|model|tokenizer)\b.*$", re.MULTILINE)
RUN = {  # in a checkout after a run: what it prints
    "dvc metrics diff": "",
    "dvc plots diff": "index.html",
    "dvc exp show": "workspace",
    "python -m pipeline.audit trace perplexity.student": "data/teacher",
    "python -m pipeline.audit verify": "all as they were made",
    "python -m pipeline.publish data/int4/student/gguf owner/name --license apache-2.0 --preview runs/card": "runs",
    "python -m pipeline.chat data/int4/student/gguf --temperature 0.7 --top-p 0.9": "",  # at the end of its input
}
ELSEWHERE = {  # how a command begins: which test runs it, or why none does
    "dvc exp run -S teacher.": "test_pipeline.py takes one from a folder, test_sources_hub.py from a hub",
    "dvc exp run -S export.formats=[compressed-tensors,qnn]": "test_prove.py, where the compiler is installed",
    "dvc exp run -S export.formats=[compressed-tensors,executorch]": "test_prove.py, as for qnn",
    "dvc exp run -S evaluate.": "test_harness.py scores a folder; the hub's data sets need a network",
    "dvc exp run -S distill.processes": "test_sharding.py and test_distill.py",
    "dvc commit": "test_edits.py",
    "dvc config": "test_links.py",
    "dvc remote": "test_remote.py",
    "python -m pipeline.flow.remote": "test_remote.py",
    "python -m pipeline.flow sweep": "test_sweep.py",
    "python -m pipeline.recommend": "test_laboratory.py, and tests/unit/recommend/test_command.py with each option",
    "python -m pipeline.audit v1.0 main my-experiment": "test_audit.py, with names that are there",
    "python -m stages.analyze": "test_signals.py",
    "make": "test_install.py; the targets are the commands that stand here",
    "prefect": "test_deployment.py",
    "torchrun": "two machines are not at hand; test_distill.py starts two processes on one",
    "python -m tests.bench": "a measurement",
    "python -m venv": "the environment of a peer, for a measurement",
    "dvc.yaml": "a file, in the tree of CONTRIBUTING.md",
}
FOR_TINY = {"g64": "g32", "ov@0-9": "ov@0", "q@20-": "q@1-"}  # which is 32 wide, and has two layers
STAGES = {"distill": ("distill",), "targets": ("targets", "distill"), "scheme": ("calibrate", "distill", "export")}


def commands() -> list[str]:
    """Each command once, without what is said of it."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in DOCUMENTS)
    command_lines = (re.sub(r"\s+#.*$", "", line).removesuffix("\\").strip() for line in COMMAND.findall(text))
    return sorted({line for line in command_lines if not line.startswith(("dvc.yaml ", "prefect.yaml "))})


def elsewhere(command: str) -> bool:
    return command.startswith(tuple(ELSEWHERE))


def experiments() -> list[str]:
    return [line for line in commands() if line.startswith("dvc exp run") and not elsewhere(line)]


def test_every_command_is_run_here_or_elsewhere() -> None:
    shown = commands()
    assert [line for line in shown if line not in RUN and line not in experiments() and not elsewhere(line)] == []
    assert [line for line in RUN if line not in shown] == []


@pytest.fixture
def copy(pipeline: Path, tmp_path: Path) -> Path:
    """The checkout after a run, to work in."""
    shutil.copytree(pipeline, tmp_path / "checkout", symlinks=True)
    return tmp_path / "checkout"


def test_commands_that_look_at_a_run_end_well(copy: Path) -> None:
    for command, said in RUN.items():
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        done = subprocess.run(
            words, cwd=copy, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
        assert said in done.stdout, command


@pytest.mark.parametrize("command", experiments())
def test_an_experiment_goes_through_the_stages_that_its_knobs_reach(desk: Path, command: str) -> None:
    """In this process, with few steps; `dvc exp run` itself is run in test_pipeline.py."""
    overrides = [word for flag, word in pairwise(shlex.split(command)) if flag == "-S"]
    for shown, tiny in FOR_TINY.items():
        overrides = [word.replace(shown, tiny) for word in overrides]
    apply_overrides(desk / "params.yaml", [*overrides, "distill.steps=2"])
    (desk / "data/text/words.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    paths = {
        "calibrate": "--teacher data/teacher --corpus data/corpus --out data/calibration --rtn data/rtn",
        "targets": "--teacher data/teacher --corpus data/corpus --text data/text --out data/targets",
        "distill": "--teacher data/teacher --targets data/targets --calibration data/calibration "
        "--signals data/signals --out data/student",
        "export": "--teacher data/teacher --corpus data/corpus --quantized data/student --out data/int4/student",
    }
    reached = STAGES[overrides[0].partition(".")[0].partition("=")[0]]
    for stage in reached:
        enter_stage(desk, stage, paths[stage].split())


def test_the_code_that_loads_the_result_runs_as_it_stands_there(copy: Path) -> None:
    for file in (ROOT / "README.md", ROOT / "docs/own-model.md"):
        lines = [match[0].strip() for match in CODE.finditer(file.read_text(encoding="utf-8"))]
        assert len(lines) == 3, file
        code = "\n".join([*lines, "print(model.config.model_type, len(tokenizer('one two')['input_ids']) > 1)"])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=copy, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["llama", "True"]
