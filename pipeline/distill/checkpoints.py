"""Checkpoints that a killed run goes on from: atomic, checked, the last two kept, no pickle.

A checkpoint is one safetensors file: masters, AdamW's moments, and the log so far as JSON. It is written under another
name and renamed when whole. The order of the data and the learning rate are functions of the
step, and nothing else is drawn by chance. Of sharded masters the first process writes all rows.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.distill.student import Student

KEPT = 2
PARTS = ("master", "exp_avg", "exp_avg_sq")
LOG = "log"
DAMAGED = (SafetensorError, ValueError, KeyError)  # what reading raises of a file that is not whole


def save(folder: Path, step: int, student: Student, optimizer: torch.optim.AdamW, log: list[dict[str, Any]]) -> None:
    """Write the state after `step` steps, and drop all but the last two checkpoints. Every process must call it.

    Raises:
        ValueError: it cannot be written, as when the disk is full; the checkpoints before it are as they were.
    """
    tensors = {}
    for name, master in student.masters.items():
        state = optimizer.state[master]
        for part, values in zip(PARTS, (master.detach(), state["exp_avg"], state["exp_avg_sq"]), strict=True):
            whole = student.processes.gather(values) if student.split(name) else values
            if student.processes.first:
                tensors[f"{part}/{name}"] = whole.cpu()
    if not student.processes.first:
        return
    tensors[LOG] = torch.frombuffer(bytearray(json.dumps(log).encode()), dtype=torch.uint8)  # a header has its limits
    file = folder / f"step-{step:08d}.safetensors"
    part_file = file.with_suffix(".part")
    try:
        save_file(tensors, part_file, metadata={"step": str(step)})
        with part_file.open("rb") as written:
            os.fsync(written.fileno())  # or a loss of power may leave the name on an empty file
        part_file.replace(file)
    except (OSError, SafetensorError) as error:
        part_file.unlink(missing_ok=True)
        raise ValueError(
            f"the checkpoint after step {step} cannot be written to {folder}: {error}; make room and run again, which "
            f"goes on from the last one before it"
        ) from None
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def restore(folder: Path, student: Student, optimizer: torch.optim.AdamW) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest whole checkpoint into masters and optimizer; returns its step and log, or 0 and an empty log.

    A checkpoint that is damaged is passed over for the one before it, with a warning on standard error. Every process
    must call it.

    Raises:
        ValueError: a checkpoint cannot be read now, which says nothing of what is in it; or another process has read
            another one.
    """
    step, log, passed_over = 0, list[dict[str, Any]](), list[Path]()
    for file in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            tensors, step, log = _read(file, student)
        except DAMAGED as error:
            print(f"distill: {file.name} cannot be used ({error}); trying the one before it", file=sys.stderr)
            passed_over.append(file)
            continue
        except OSError as error:
            raise ValueError(f"the checkpoint {file} cannot be read: {error}; run again when it can") from None
        _load(student, optimizer, tensors, step)
        break
    sums = torch.tensor([step, step**2], device=student.processes.device)
    student.processes.sum_([sums])
    if sums.tolist() != [student.processes.count * step, student.processes.count * step**2]:
        raise ValueError(f"process {student.processes.rank} would go on after step {step}, others not; run again")
    for file in passed_over if student.processes.first else ():  # they must not count among those that are kept
        file.unlink(missing_ok=True)
    return step, log


def _read(file: Path, student: Student) -> tuple[dict[str, Tensor], int, list[dict[str, Any]]]:
    """What a checkpoint of this student holds, after which step, and the log until then.

    Raises:
        DAMAGED: it is not whole, or another student's. OSError: it cannot be read.
    """
    with safe_open(file, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  not a dict
        step = int((stored.metadata() or {})["step"])
    log = json.loads(tensors.pop(LOG).numpy().tobytes())
    if tensors.keys() != {f"{part}/{name}" for part in PARTS for name in student.masters}:
        raise ValueError("it holds other tensors")
    return tensors, step, log


@torch.no_grad()
def _load(student: Student, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor], step: int) -> None:
    for name, master in student.masters.items():
        mine = {part: _mine(student, name, tensors[f"{part}/{name}"]).to(master.device) for part in PARTS}
        master.copy_(mine.pop("master"))
        optimizer.state[master] = {"step": torch.tensor(float(step), device=master.device), **mine}


def _mine(student: Student, name: str, whole: Tensor) -> Tensor:
    """This process's rows of a master (or a moment) that holds every trained row."""
    if not student.split(name):
        return whole
    of_all = student.trained[name.rpartition(".")[0]].of_all
    number = len(student.start.codes[name.rpartition(".")[0]])
    rows, held = torch.arange(number) if of_all is None else of_all, student.processes.rows(number)
    return whole[(rows >= held.start) & (rows < held.stop)].contiguous()
