import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline import models
from pipeline.calibration.driver import Options, calibrate
from pipeline.distill import loop
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.losses import LossWeights
from pipeline.distill.student import Student, prepare
from pipeline.quant.model import QuantizedModel
from pipeline.scheme import Activations, KVCache, Override, Scheme, Weights
from tests import tiny
from tests.families import family

KNOBS = {
    "steps": 6, "batch": 2, "lr": 1e-3, "warmup": 0.34, "min_lr": 0.1, "weight_decay": 0.01, "clip": 1.0,
    "checkpoint_every": 2, "dtype": "float32", "seed": 0,
}  # fmt: skip
KL = LossWeights(0.0, 1.0, 1.0, 16)


def schedule(**changes: Any) -> loop.Schedule:
    return loop.Schedule(**{**KNOBS, **changes})


def make_student(start: QuantizedModel, mode: str = "static", dtype: str = "float32") -> Student:
    model = tiny.llama()
    own = dataclasses.replace(start, latent={name: latent.clone() for name, latent in start.latent.items()})
    frozen = frozen_rows("ov", models.linears(model))
    return prepare(model, own, frozen, mode, True, models.torch_dtype(dtype))


def quietly(done: int) -> Any:
    return lambda row: None


def killed_after(steps: int) -> Any:
    """A `begin` whose report stands for the signal that kills the run."""

    def report(row: dict[str, Any]) -> None:
        if row["step"] == steps:
            raise KeyboardInterrupt

    return lambda done: report


@pytest.fixture(scope="module")
def data(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return tokens, lengths


@pytest.fixture(scope="module")
def uninterrupted(calibrated, data, tmp_path_factory) -> tuple[Student, list[dict[str, Any]]]:
    student = make_student(calibrated)
    folder = tmp_path_factory.mktemp("uninterrupted")
    return student, loop.train(student, tiny.llama(), data, schedule(), KL, folder, quietly)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["static", "minmax"])
def test_the_student_learns(calibrated, data, tmp_path, mode: str, dtype: str):
    """On the same sequences at every step, the divergence falls to less than half."""
    teacher = tiny.llama()
    models.cast_linears(teacher, dtype)
    plan = schedule(batch=6, steps=20, warmup=0.1, dtype=dtype, checkpoint_every=99)
    log = loop.train(make_student(calibrated, mode, dtype), teacher, data, plan, KL, tmp_path, quietly)
    assert log[-1]["kl"] < 0.5 * log[0]["kl"]


def test_the_log_tells_each_step(uninterrupted, data):
    _, log = uninterrupted
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert all(list(row) == list(loop.LOG_COLUMNS) for row in log)
    assert [row["lr"] for row in log] == [schedule().rate(step) for step in range(6)]
    used = [data[1][schedule().sequences(step, 6)].sum().item() - 2 for step in range(6)]
    assert [row["tokens"] for row in log] == torch.tensor(used).cumsum(0).tolist()


def test_the_first_logged_loss_is_the_divergence_of_the_calibrated_model(calibrated, uninterrupted, data):
    quantized, teacher = tiny.llama(), tiny.llama()
    calibrated.put_into(quantized)
    tokens, lengths = (each[schedule().sequences(0, 6)] for each in data)
    log_q, log_p = (torch.log_softmax(m(input_ids=tokens).logits.double(), -1) for m in (quantized, teacher))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    predicted = torch.arange(1, 20)[None] < lengths[:, None]
    assert uninterrupted[1][0]["kl"] == pytest.approx(kl[:, :-1][predicted].mean().item(), rel=1e-4)


@pytest.mark.parametrize(("stop", "resumed_from"), [(1, 0), (3, 2), (5, 4)])
def test_a_killed_run_ends_in_the_same_bits(calibrated, uninterrupted, data, tmp_path, stop: int, resumed_from: int):
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_student(calibrated), tiny.llama(), data, schedule(), KL, tmp_path, killed_after(stop))
    begun: list[int] = []
    student = make_student(calibrated)
    log = loop.train(student, tiny.llama(), data, schedule(), KL, tmp_path, lambda d: begun.append(d) or quietly(d))
    assert begun == [resumed_from]
    assert_same_end(student, log, uninterrupted)


def test_a_truncated_checkpoint_is_passed_over_with_a_warning(calibrated, uninterrupted, data, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_student(calibrated), tiny.llama(), data, schedule(), KL, tmp_path, killed_after(5))
    newest = sorted(tmp_path.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    begun: list[int] = []
    student = make_student(calibrated)
    log = loop.train(student, tiny.llama(), data, schedule(), KL, tmp_path, lambda d: begun.append(d) or quietly(d))
    assert "step-00000004.safetensors cannot be used" in capsys.readouterr().err
    assert begun == [2]
    assert_same_end(student, log, uninterrupted)


@pytest.mark.parametrize("mode", ["static", "minmax"])
def test_so_does_one_of_groups_zero_points_and_partly_frozen_projections(data, tmp_path: Path, mode: str):
    scheme = Scheme(
        Weights(3, symmetric=False, group=8),
        Activations(8, dynamic=True),
        KVCache(4),
        (Override("lm_head", weights=Weights(8)),),
    )
    valid = torch.ones_like(data[0], dtype=torch.bool)
    options = Options("rtn", {}, batch=6, measure=False)
    start = calibrate(family("phi3"), data[0], valid, scheme, options, None, lambda: None).model

    def fresh() -> Student:
        own = dataclasses.replace(start, latent={name: latent.clone() for name, latent in start.latent.items()})
        model = family("phi3")
        return prepare(model, own, frozen_rows("ov", models.linears(model)), mode, True, torch.float32)

    def end(student: Student, folder: Path, begin: Any) -> tuple[Student, list[dict[str, Any]]]:
        folder.mkdir(exist_ok=True)
        return student, loop.train(student, family("phi3"), data, schedule(), KL, folder, begin)

    expected = end(fresh(), tmp_path / "whole", quietly)
    with pytest.raises(KeyboardInterrupt):
        end(fresh(), tmp_path / "killed", killed_after(5))
    student, log = end(fresh(), tmp_path / "killed", quietly)
    assert_same_end(student, log, expected)
    assert 0 < log[-1]["kl"] < log[0]["kl"]


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


def test_a_rate_that_drives_the_loss_out_of_range_stops_at_once_and_names_the_step(calibrated, data, tmp_path: Path):
    """What overflows is the final norm: the layers before it read activations that static grids hold in range."""
    message = (
        r"the loss is nan at step 2: every layer's output is finite, the head's or the loss is not; lower distill\.lr"
    )
    with pytest.raises(ValueError, match=message):
        loop.train(make_student(calibrated), tiny.llama(), data, schedule(lr=1e38), KL, tmp_path, quietly)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_first_layer_whose_output_is_not_finite_is_named(calibrated, data, tmp_path: Path, layer: int):
    student = make_student(calibrated)
    norm = student.modules[f"model.layers.{layer}.input_layernorm.weight"]

    def spoil(row: dict[str, Any]) -> None:
        norm.data[0] = float("nan")

    with pytest.raises(ValueError, match=rf"the loss is nan at step 2: model\.layers\.{layer} is the first layer"):
        loop.train(student, tiny.llama(), data, schedule(), KL, tmp_path, lambda done: spoil)


def test_a_loss_that_stays_at_zero_stops_training(calibrated, data, tmp_path: Path):
    """A teacher that is the student, and a rate too small to change a code."""
    teacher = tiny.llama()
    calibrated.put_into(teacher)
    with pytest.raises(ValueError, match="the loss has been zero for 5 steps, at step 5"):
        loop.train(make_student(calibrated), teacher, data, schedule(lr=1e-30), KL, tmp_path, quietly)


def test_each_step_is_as_long_as_the_schedule_says(calibrated, data, tmp_path: Path):
    """AdamW's first step moves each number by the rate, whatever its gradient (2.5e-4 is a quarter of the peak)."""
    student, start = make_student(calibrated), make_student(calibrated)
    plan = schedule(steps=4, warmup=1.0, weight_decay=0.0)
    with pytest.raises(KeyboardInterrupt):
        loop.train(student, tiny.llama(), data, plan, KL, tmp_path, killed_after(1))
    moved = torch.stack([(m - start.masters[name]).abs().max() for name, m in student.masters.items()]).detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 2.5e-4), rtol=0.01, atol=0)


def test_the_gradient_is_clipped_at_its_global_norm(calibrated, data, tmp_path: Path):
    """AdamW's first moment after one step is a tenth of the clipped gradient (betas 0.9, 0.95)."""
    student = make_student(calibrated)
    log = loop.train(
        student, tiny.llama(), data, schedule(clip=1e-3, checkpoint_every=1, steps=2), KL, tmp_path, quietly
    )
    assert log[0]["gradient_norm"] > 0.01
    moments = {k: v for k, v in load_file(tmp_path / "step-00000001.safetensors").items() if k.startswith("exp_avg/")}
    norm = torch.stack([moment.double().square().sum() for moment in moments.values()]).sum().sqrt()
    assert norm.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)
