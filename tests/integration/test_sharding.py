"""Training sharded over two processes, of linears that are not simply a matrix a role: as alone, and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.distill.parallel import ALONE
from tests import sharded
from tests.integration.conftest import ROOT, environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sharded")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.sharded",
        str(where),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return where


@pytest.mark.parametrize("case", sharded.CASES)
def test_two_processes_end_as_one(folder: Path, case: str, tmp_path: Path):
    sharded.train(case, tmp_path, ALONE)
    ours, theirs = (json.loads((where / "log.json").read_text()) for where in (folder / case, tmp_path))
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(expected, rel=2e-3)
    tensors, expected_tensors = (load_file(where / "finished.safetensors") for where in (folder / case, tmp_path))
    assert tensors.keys() == expected_tensors.keys()
    for name, expected in expected_tensors.items():
        difference = (tensors[name].float() - expected.float()).abs()
        if name.startswith("codes"):
            assert (difference > 0).float().mean() < 0.02, name
        else:
            assert difference.max() < 2e-3, name


@pytest.mark.parametrize("case", sharded.CASES)
def test_stopped_and_started_again_they_end_in_the_same_bytes(folder: Path, case: str):
    for file in ("finished.safetensors", "log.json"):
        assert (folder / f"{case} stopped" / file).read_bytes() == (folder / case / file).read_bytes()
