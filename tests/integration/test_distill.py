"""distill as a user starts it: in several processes the same curve as in one; killed ones; a full disk."""

import csv
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from pipeline.artifacts.progress import LOCK
from tests.integration.conftest import change_params, environment, run
from tests.integration.stopping import wait_for

INPUTS = ("teacher", "targets", "calibration", "signals")
DISTILL = [
    *[sys.executable, "-m", "stages.distill"],
    *[part for name in INPUTS for part in (f"--{name}", f"data/{name}")],
    *["--out", "data/student", "--environment", "data/environments/distill.json"],
]
KNOBS = {"dtype": "float32", "steps": 12, "checkpoint_every": 4, "freeze": "ov@0,v@1", "scale": "learned"}


@pytest.fixture(scope="module")
def workplace(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pipeline without its student, to train in float32, which several processes may not change."""
    where = tmp_path_factory.mktemp("processes") / "copy"
    shutil.copytree(pipeline, where, symlinks=True, ignore=shutil.ignore_patterns(".dvc", "student", "runs"))
    change_params(where, {"distill": KNOBS})
    return where


def train(workplace: Path, name: str, **knobs: object) -> Path:
    """Where a training with these knobs left its student."""
    where = workplace.parent / name
    shutil.copytree(workplace, where, symlinks=True)
    change_params(where, {"distill": knobs})
    run(DISTILL, where)
    return where / "data/student"


def curve(student: Path) -> list[dict[str, float]]:
    with (student / "log.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def wait_for_checkpoint(where: Path, process: subprocess.Popen, file: str = "*.safetensors") -> None:
    """The first checkpoint, if none is named."""
    wait_for(lambda: any(where.glob(f"runs/scratch/distill/*/{file}")), process, 120)


def kill_at(where: Path, file: str = "*.safetensors") -> None:
    """Train until a checkpoint is there, then end it with SIGKILL."""
    process = subprocess.Popen(
        DISTILL, cwd=where, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_checkpoint(where, process, file)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def alone(workplace: Path) -> Path:
    return train(workplace, "alone")


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_two_processes_train_as_one(workplace: Path, alone: Path, shard: bool):
    """The same steps, each with the same sequences, to float error; and frozen codes that are the same bits."""
    student = train(workplace, f"two-{shard}", processes=2, accumulate=2, shard=shard)
    records = (json.loads((folder.parent / "environments/distill.json").read_text()) for folder in (alone, student))
    assert [record["processes"] for record in records] == [1, 2]
    expected_rows, rows = curve(alone), curve(student)
    assert len(rows) == 12
    for mine, theirs in zip(rows, expected_rows, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3)
    start, ours, one = (
        load_file(folder / "codes.safetensors") for folder in (workplace / "data/calibration", student, alone)
    )
    assert ours.keys() == one.keys()
    same = sum(int((ours[name] == one[name]).sum()) for name in one) / sum(codes.numel() for codes in one.values())
    assert same > 0.995
    for name in (
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
    ):
        assert (ours[name] == start[name]).all()
    assert not (ours["model.layers.1.self_attn.o_proj"] == start["model.layers.1.self_attn.o_proj"]).all()


def test_a_student_of_quantized_inputs_and_cache_learns_from_others_text(workplace: Path):
    """calibrate, targets and distill as DVC starts them: W4A8KV4, half of the sequences from .txt and .jsonl files."""
    where = workplace.parent / "others"
    shutil.copytree(workplace, where, symlinks=True)
    text = where / "data/text"
    for old in text.iterdir():
        old.unlink()
    (text / "a.txt").write_text("Where the ground never thaws, mammoths keep. " * 60)
    (text / "b.jsonl").write_text("".join(json.dumps({"text": f"Page {i} of the almanac."}) + "\n" for i in range(99)))
    sections = {"calibrate": {"method": "rtn"}, "targets": {"share": 0.5, "text": "data/text"}}
    change_params(where, {"scheme": "W4A8KV4", **sections, "distill": {"steps": 24, "scale": "static"}})
    stages = yaml.safe_load((where / "dvc.yaml").read_text())["stages"]
    own = json.loads((where / "data/targets/manifest.json").read_text())["facts"]["sequences"]
    for stage in ("calibrate", "targets", "distill"):
        command = stages[stage]["cmd"].replace("${targets.text}", "data/text").split()
        run([sys.executable, *command[1:]], where)
    facts = json.loads((where / "data/targets/manifest.json").read_text())["facts"]
    assert (facts["share"], facts["sequences"]) == (0.5, 2 * own)
    student = where / "data/student"
    grids = json.loads((student / "scheme.json").read_text())
    assert grids["kv_cache"]["bits"] == 4
    assert {grid["bits"] for grid in grids["inputs"].values()} == {8}
    rows = curve(student)
    assert sum(row["kl"] for row in rows[-8:]) < 0.95 * sum(row["kl"] for row in rows[:8])


def test_hidden_states_are_compared_as_the_teacher_has_them(workplace: Path):
    """Of a model that was rotated, whose own are as far from the teacher's as any others are: by 2."""
    assert json.loads((workplace / "data/calibration/manifest.json").read_text())["facts"]["rotation_seed"] is not None
    rows = curve(train(workplace, "hidden", hidden=1.0, scale="static"))
    assert 0 < rows[0]["hidden"] < 0.5
    assert sum(row["hidden"] for row in rows[-4:]) < sum(row["hidden"] for row in rows[:4])
    assert rows[0]["loss"] == pytest.approx(rows[0]["kl"] + rows[0]["hidden"], rel=1e-5)


def test_killed_twice_it_ends_in_the_same_bytes(workplace: Path, alone: Path):
    """With SIGKILL, after the first checkpoint and after the second."""
    where = workplace.parent / "twice"
    shutil.copytree(workplace, where, symlinks=True)
    for step in (4, 8):
        kill_at(where, f"step-{step:08d}.safetensors")
        assert not (where / "data/student").exists()
    assert "going on after step 8 of 12" in run(DISTILL, where).stdout
    for file in alone.iterdir():
        assert (where / "data/student" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_full_disk_ends_with_one_clear_line_and_the_last_checkpoint_intact(workplace: Path, alone: Path):
    """A limit on the size of files stands for the disk: writing fails in the middle, as it would there."""
    where = workplace.parent / "full"
    shutil.copytree(workplace, where, symlinks=True)
    kill_at(where)
    (kept,) = where.glob("runs/scratch/distill/*/*.safetensors")
    before = kept.read_bytes()
    limit = len(before) // 2
    done = subprocess.run(
        DISTILL,
        cwd=where,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("distill: the checkpoint after step 8 cannot be written to ")
    assert "make room and run again" in message
    assert "Traceback" not in done.stderr
    assert {file.name for file in kept.parent.iterdir()} == {kept.name, LOCK}
    assert kept.read_bytes() == before
    assert "going on after step 4 of 12" in run(DISTILL, where).stdout
    assert (where / "data/student/codes.safetensors").read_bytes() == (alone / "codes.safetensors").read_bytes()


def test_a_killed_process_ends_the_run_with_its_name_and_the_run_goes_on(workplace: Path):
    whole = train(workplace, "whole", processes=2, shard=True)
    where = workplace.parent / "killed"
    shutil.copytree(workplace, where, symlinks=True)
    change_params(where, {"distill": {"processes": 2, "shard": True}})
    process = subprocess.Popen(
        DISTILL, cwd=where, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_checkpoint(where, process)
    victim = next(child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1")
    victim.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"distill: process 1 \(pid \d+\) was killed by SIGKILL, .* run again to go on", output), output
    assert "Traceback" not in output.split("distill: process 1")[-1]
    assert not (where / "data/student").exists()
    done = run(DISTILL, where)
    assert "going on after step" in done.stdout
    for file in ("codes.safetensors", "scales.safetensors", "floats.safetensors", "log.csv", "manifest.json"):
        assert (where / "data/student" / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_launcher_is_stopped_no_process_stays(workplace: Path, number: signal.Signals):
    """SIGTERM and SIGINT, besides, end in the shell's exit code for them and no traceback."""
    where = workplace.parent / number.name
    shutil.copytree(workplace, where, symlinks=True)
    change_params(where, {"distill": {"processes": 2, "steps": 10000}})
    process = subprocess.Popen(
        DISTILL, cwd=where, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_checkpoint(where, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert sum(child.environ().get("RANK") is not None for child in children) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "Traceback" not in errors
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_bad_knobs_are_told_once_and_not_by_every_process(workplace: Path):
    where = workplace.parent / "bad"
    shutil.copytree(workplace, where, symlinks=True)
    change_params(where, {"distill": {"processes": 3}})
    done = run(DISTILL, where, check=False)
    assert done.returncode == 1
    assert done.stderr.count("distill.batch: 8 sequences do not divide among 3 processes") == 1
    assert yaml.safe_load((where / "params.yaml").read_text())["distill"]["processes"] == 3
