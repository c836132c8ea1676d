"""`python -m pipeline.publish` on what a run of the pipeline made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.integration.conftest import environment

FOLDER = "data/int4/student/gguf"


def publish(where: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in environment().items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    env |= {"HF_HOME": str(where / "runs/hub"), **settings}  # no token of whoever runs the tests
    command = [sys.executable, "-m", "pipeline.publish", *options]
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(pipeline: Path, tmp_path: Path) -> Path:
    """The checkout after a run, to change something in."""
    shutil.copytree(pipeline, tmp_path / "checkout", symlinks=True)
    return tmp_path / "checkout"


@pytest.mark.parametrize("variant", ["rtn", "student"])
def test_a_dry_run_lists_the_files_and_writes_the_card_with_what_the_run_scored(
    variant: str, pipeline: Path, tmp_path: Path
) -> None:
    folder = f"data/int4/{variant}/gguf"
    done = publish(pipeline, folder, "me/tiny", "--license", "mit", "--preview", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    listed = {name: int(size.replace(",", "")) for name, size in lines}
    card = (tmp_path / "README.md").read_text()
    held = {file.name: file.stat().st_size for file in (pipeline / folder).iterdir()}
    assert listed == held | {"README.md": len(card.encode())}
    assert "nothing was uploaded" in done.stdout
    assert ModelCard(card).data.to_dict()["license"] == "mit"

    summary = json.loads((pipeline / "data/report/summary.json").read_text())
    perplexity, error = summary[f"perplexity.{variant}"], summary[f"perplexity.{variant}.stderr"]
    assert f"| {perplexity:.2f} ± {error:.2f} |" in card
    lock = (pipeline / "dvc.lock").read_text()
    hashes = [line.split("|")[3].strip(" `") for line in card.splitlines() if line.count("`") == 4]
    assert len(hashes) >= 4
    assert all(f"md5: {digest}" in lock for digest in hashes)
    stages = [line.split()[1] for line in card.splitlines() if line.startswith("| ") and line.count("`") == 4]
    assert stages[0] == "teacher"
    assert stages[-1] == f"export@{variant}"
    assert ("distill" in stages) == (variant == "student")
    assert ("| llama.cpp | " in card) == (variant == "student")  # which alone is proven
    assert "INT4 per-channel weights" in card
    assert "teacher.path" not in card
    assert "path=…/" in card  # and no place on this machine
    assert str(pipeline.parent) not in card


def test_without_a_preview_the_card_is_printed_and_nothing_is_written(copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    done = publish(copy, FOLDER, "me/tiny", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert "\nlibrary_name: gguf\n" in done.stdout
    assert "the license of the float model is not known" in done.stdout
    assert [file for file in sorted(copy.rglob("*")) if file not in before and ".dvc" not in file.parts] == []


def test_scores_of_another_state_are_left_out_with_the_reason(copy: Path) -> None:
    scores = copy / "data/scores/student.json"
    content = json.loads(scores.read_text())
    scores.unlink()
    scores.write_text(json.dumps({**content, "perplexity": 1.0}))
    card = publish(copy, FOLDER, "me/tiny").stdout
    assert "## Scores" not in card
    assert "Scores are left out: data/scores/student.json is not what evaluate@student made." in card


def test_a_folder_that_was_made_otherwise_has_no_lineage(copy: Path) -> None:
    """Its own hashes fit, but it is not what the run made."""
    shutil.rmtree(copy / FOLDER)
    shutil.copytree(copy / "data/int4/rtn/gguf", copy / FOLDER)
    card = publish(copy, FOLDER, "me/tiny").stdout
    assert "## Scores" not in card
    assert "it is not what export@student made last" in card


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        (("data/teacher", "me/tiny"), {}, "holds 'teacher' version 1, but 'int4'"),
        (("data/int4/student", "me/tiny"), {}, "it holds data/int4/student/compressed-tensors"),
        ((FOLDER, "tiny"), {}, "'tiny' names no owner"),
        ((FOLDER, "me/ti ny"), {}, "is no name of a repository"),
        ((FOLDER, "me/tiny", "--base-model", "x"), {}, "'x' names no owner"),
        ((FOLDER, "me/tiny", "--upload"), {}, "there is no token for the hub"),
        (
            (FOLDER, "me/tiny", "--upload"),
            {"HF_TOKEN": "token", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "the hub at http://127.0.0.1:9 is out of reach",
        ),
    ],
)
def test_what_cannot_be_published_is_told_in_a_line(
    pipeline: Path, options: tuple[str, ...], settings: dict[str, str], said: str
) -> None:
    done = publish(pipeline, *options, **settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("publish: ")
    assert said in line


def test_a_shard_that_was_cut_is_refused(copy: Path) -> None:
    weights = copy / "data/int4/student/compressed-tensors/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-8])
    done = publish(copy, "data/int4/student/compressed-tensors", "me/tiny")
    assert done.returncode == 1
    assert "model.safetensors: its content has changed" in done.stderr
    assert "Traceback" not in done.stderr
