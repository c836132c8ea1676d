from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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


def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Training would start from an older step, and the good checkpoint would be gone."""
    save_steps(tmp_path, 2, 4)

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "safe_open", fail)
        with pytest.raises(ValueError, match=r"step-00000004\.safetensors cannot be read: .*Too many open files"):
            checkpoints.restore(tmp_path, *fresh())
        patch.setattr(checkpoints, "safe_open", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            checkpoints.restore(tmp_path, *fresh())
    assert checkpoints.restore(tmp_path, *fresh())[0] == 4


class Some:
    """Processes, of which the others are at some steps."""

    rank, first, sharded, device = 0, True, False, torch.device("cpu")

    def __init__(self, *others: int) -> None:
        self.others, self.count = others, 1 + len(others)

    def sum_(self, tensors: list[torch.Tensor]) -> None:
        for other in self.others:
            tensors[0] += torch.tensor([other, other**2])


@pytest.mark.parametrize("others", [(2,), (4, 2), (3, 5), (0, 8)])
def test_processes_that_would_go_on_from_different_steps_do_not(tmp_path: Path, others: tuple[int, ...]):
    """And nothing is removed until they agree."""
    save_steps(tmp_path, 2, 4)
    (tmp_path / "step-00000006.safetensors").write_bytes(b"damaged")
    student, optimizer = fresh()
    student.processes = Some(*others)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="process 0 would go on after step 4, others not"):
        checkpoints.restore(tmp_path, student, optimizer)
    assert len([*tmp_path.iterdir()]) == 3
    student.processes = Some(*(4 for _ in others))  # type: ignore[assignment]
    assert checkpoints.restore(tmp_path, student, optimizer)[0] == 4
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("damage", ["log", "step"])
def test_a_checkpoint_whose_log_or_step_is_gone_is_passed_over(tmp_path: Path, damage: str):
    save_steps(tmp_path, 2, 4)
    newest = tmp_path / "step-00000004.safetensors"
    tensors = load_file(newest)
    if damage == "log":
        tensors["log"].zero_()
    save_file(tensors, newest, metadata={"step": "4"} if damage == "log" else None)
    assert checkpoints.restore(tmp_path, *fresh())[0] == 2


def test_a_log_longer_than_a_header_may_be_comes_back(tmp_path: Path):
    student, optimizer = fresh()
    step(student, optimizer, 1)
    log = [{"step": 1, "loss": 0.1, "note": "x" * 101_000_000}]
    checkpoints.save(tmp_path, 1, student, optimizer, log)
    same = checkpoints.restore(tmp_path, *fresh()) == (1, log)
    assert same


def test_a_checkpoint_of_other_masters_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_steps(tmp_path, 2)
    assert checkpoints.restore(tmp_path, *fresh(b=nn.Parameter(torch.ones(3, 2)))) == (0, [])
    assert "it holds other tensors" in capsys.readouterr().err
