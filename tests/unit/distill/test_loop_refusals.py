"""Training that goes wrong is stopped at once, and says where."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.distill.targets import Targets, record
from pipeline.models import forward
from tests import tiny
from tests.unit.distill.training import make_student, quietly, schedule, train


@pytest.fixture(scope="module")
def data(tokens: Tensor, lengths: Tensor) -> Targets:
    return record(tiny.llama(), tokens, lengths, 6, "float32", lambda n: None)


def test_a_rate_that_drives_the_loss_out_of_range_stops_at_once_and_names_the_step(calibrated, data, tmp_path: Path):
    """What overflows is the final norm: the layers before it read activations that static grids hold in range."""
    message = (
        r"the loss is nan at step 2: every layer's output is finite, the head's or the loss is not; lower distill\.lr"
    )
    with pytest.raises(ValueError, match=message):
        train(make_student(calibrated), data, tmp_path, quietly, schedule(lr=1e38))


@pytest.mark.parametrize("layer", [0, 1])
def test_the_first_layer_whose_output_is_not_finite_is_named(calibrated, data, tmp_path: Path, layer: int):
    student = make_student(calibrated)
    norm = student.modules[f"model.layers.{layer}.input_layernorm.weight"]

    def spoil(row: dict[str, Any]) -> None:
        norm.data[0] = float("nan")

    with pytest.raises(ValueError, match=rf"the loss is nan at step 2: model\.layers\.{layer} is the first layer"):
        train(student, data, tmp_path, lambda done: spoil)


def test_a_loss_that_stays_at_zero_stops_training(calibrated, data, tmp_path: Path):
    """A teacher that is the student, and a rate too small to change a code."""
    teacher = tiny.llama()
    calibrated.put_into(teacher)
    same = dataclasses.replace(
        data, hidden=torch.cat([forward.hidden_states(teacher, data.tokens[[i]]) for i in range(len(data))])
    )
    with pytest.raises(ValueError, match="the loss has been zero for 5 steps, at step 5"):
        train(
            make_student(calibrated),
            same,
            tmp_path,
            quietly,
            schedule(batch=1, lr=1e-30),
            head=teacher.lm_head.weight,
        )
