from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.distill import checkpoints
from pipeline.distill.parallel import ALONE
from pipeline.distill.student import Learns, Student


def fresh(**others: nn.Parameter) -> tuple[Student, torch.optim.AdamW]:
    """Of a student, checkpoints need no more than its masters."""
    masters = others or {"a.weight": nn.Parameter(torch.ones(3, 2)), "norm": nn.Parameter(torch.zeros(4))}
    optimizer = torch.optim.AdamW(masters.values(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.01)
    return Student(None, None, Learns(), ALONE, masters), optimizer  # type: ignore[arg-type]


def step(student: Student, optimizer: torch.optim.AdamW, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for master in student.masters.values():
        master.grad = torch.randn(master.shape, generator=generator)
    optimizer.step()


def save_steps(folder: Path, *steps: int) -> dict[str, nn.Parameter]:
    """Masters after the last of `steps`, each of which was saved."""
    student, optimizer = fresh()
    for number in range(1, max(steps) + 1):
        step(student, optimizer, number)
        if number in steps:
            checkpoints.save(
                folder, number, student, optimizer, [{"step": s, "loss": 0.1 * s} for s in range(1, number + 1)]
            )
    return student.masters


def test_going_on_from_a_checkpoint_is_the_same_as_never_having_stopped(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    expected = save_steps(tmp_path / "whole", 5)
    save_steps(tmp_path / "part", 3)
    student, optimizer = fresh()
    done, log = checkpoints.restore(tmp_path / "part", student, optimizer)
    assert (done, log) == (3, [{"step": s, "loss": 0.1 * s} for s in (1, 2, 3)])
    for number in (4, 5):
        step(student, optimizer, number)
    assert all(torch.equal(student.masters[name], expected[name]) for name in student.masters)


def test_the_last_two_are_kept_and_nothing_half_written(tmp_path: Path):
    save_steps(tmp_path, 1, 2, 3, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.safetensors", "step-00000004.safetensors"]


def test_the_newest_is_taken(tmp_path: Path):
    expected = save_steps(tmp_path, 9, 10)
    student, optimizer = fresh()
    assert checkpoints.restore(tmp_path, student, optimizer)[0] == 10
    assert all(torch.equal(student.masters[name], expected[name]) for name in student.masters)


def test_without_a_checkpoint_nothing_changes(tmp_path: Path):
    student, optimizer = fresh()
    assert checkpoints.restore(tmp_path, student, optimizer) == (0, [])
    assert torch.equal(student.masters["a.weight"], torch.ones(3, 2))
    assert not optimizer.state


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int
):
    save_steps(tmp_path, 2, 4)
    newest = tmp_path / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:keep])
    student, optimizer = fresh()
    assert checkpoints.restore(tmp_path, student, optimizer)[0] == 2
    assert "step-00000004.safetensors cannot be used" in capsys.readouterr().err
    assert torch.equal(
        student.masters["a.weight"], load_file(tmp_path / "step-00000002.safetensors")["master/a.weight"]
    )


def test_where_none_is_whole_training_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_steps(tmp_path, 2, 4)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    student, optimizer = fresh()
    assert checkpoints.restore(tmp_path, student, optimizer) == (0, [])
    assert capsys.readouterr().err.count("cannot be used") == 2


def test_a_checkpoint_of_other_masters_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_steps(tmp_path, 2)
    assert checkpoints.restore(tmp_path, *fresh(b=nn.Parameter(torch.ones(3, 2)))) == (0, [])
    assert "it holds other tensors" in capsys.readouterr().err
