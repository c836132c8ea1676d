"""Trainings of the tiny student, whole and killed."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.distill import loop
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.prepare import prepare
from pipeline.distill.schedule import Schedule
from pipeline.distill.student import Learns, Student
from pipeline.distill.targets import Targets
from pipeline.losses.chunked import LossWeights
from pipeline.models import forward, layout
from pipeline.quant.model import QuantizedModel
from tests import tiny

KNOBS = {
    "steps": 6, "batch": 2, "accumulate": 1, "lr": 1e-3, "scale_lr": 1e-4, "warmup": 0.34, "min_lr": 0.1,
    "weight_decay": 0.01, "clip": 1.0, "checkpoint_every": 2, "dtype": "float32", "seed": 0,
}  # fmt: skip


KL = LossWeights(0.0, 1.0, 1.0, 16)


STATIC = Learns()


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{**KNOBS, **changes})


def make_student(start: QuantizedModel, learns: Learns = STATIC, dtype: str = "float32") -> Student:
    model = tiny.llama()
    own = dataclasses.replace(start, latent={name: latent.clone() for name, latent in start.latent.items()})
    frozen = frozen_rows("ov", layout.linears(model))
    return prepare(model, own, frozen, learns, forward.torch_dtype(dtype))


def train(
    student: Student,
    data: Targets,
    folder: Path,
    begin: Any,
    plan: Schedule | None = None,
    weights: LossWeights = KL,
    head: Tensor | None = None,
    batchmean: bool = False,
) -> list[dict[str, Any]]:
    """The student of the tiny model, or of the one whose head is given."""
    head = tiny.llama().lm_head.weight if head is None else head
    return loop.train(student, head, data, plan or schedule(), weights, folder, begin, batchmean)


def quietly(done: int) -> Any:
    return lambda row: None


def killed_after(steps: int) -> Any:
    """A `begin` whose report stands for the signal that kills the run."""

    def report(row: dict[str, Any]) -> None:
        if row["step"] == steps:
            raise KeyboardInterrupt

    return lambda done: report


def assert_same_end(
    student: Student, log: list[dict[str, Any]], uninterrupted: tuple[Student, list[dict[str, Any]]]
) -> None:
    reference, reference_log = uninterrupted
    assert log == reference_log
    assert all(torch.equal(master, reference.masters[name]) for name, master in student.masters.items())
    ours, theirs = student.finished(), reference.finished()
    assert all(torch.equal(codes, theirs.codes[name]) for name, codes in ours.codes.items())
    assert all(
        torch.equal(a, b) for name in ours.steps for a, b in zip(ours.steps[name], theirs.steps[name], strict=True)
    )
    assert all(torch.equal(values, theirs.floats[name]) for name, values in ours.floats.items())
