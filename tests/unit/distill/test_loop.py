import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.distill import loop
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.prepare import prepare
from pipeline.distill.student import Learns, Student
from pipeline.distill.targets import Targets, record
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights
from pipeline.losses.chunked import LossWeights
from pipeline.models import layout
from tests import tiny
from tests.families import family
from tests.unit.distill.training import assert_same_end, killed_after, make_student, quietly, schedule, train


@pytest.fixture(scope="module")
def data(tokens: Tensor, lengths: Tensor) -> Targets:
    return record(tiny.llama(), tokens, lengths, 6, "float32", lambda n: None)


@pytest.fixture(scope="module")
def uninterrupted(calibrated, data, tmp_path_factory) -> tuple[Student, list[dict[str, Any]]]:
    student = make_student(calibrated)
    return student, train(student, data, tmp_path_factory.mktemp("uninterrupted"), quietly)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["static", "minmax"])
def test_the_student_learns(calibrated, data, tmp_path, mode: str, dtype: str):
    """On the same sequences at every step, the divergence falls to less than half."""
    plan = schedule(batch=6, steps=20, warmup=0.1, dtype=dtype, checkpoint_every=99)
    log = train(make_student(calibrated, Learns(mode), dtype), data, tmp_path, quietly, plan)
    assert log[-1]["kl"] < 0.5 * log[0]["kl"]


def test_the_log_tells_each_step(uninterrupted, data):
    _, log = uninterrupted
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    by_role = [f"gradient_norm.{role}" for role in ("q", "k", "v", "o", "gate", "up", "down")]
    assert all(list(row) == [*loop.LOG_COLUMNS, *by_role] for row in log)
    assert [row["lr"] for row in log] == [schedule().lr * schedule().factor(step) for step in range(6)]
    assert all((row[f"gradient_norm.{role}"] == 0) is (role in "ov") for row in log for role in ("q", "o", "v", "down"))
    used = [data.lengths[schedule().sequences(step, 6)].sum().item() - 2 for step in range(6)]
    assert [row["tokens"] for row in log] == torch.tensor(used).cumsum(0).tolist()


def test_the_first_logged_loss_is_the_divergence_of_the_calibrated_model(calibrated, uninterrupted, data):
    quantized, teacher = tiny.llama(), tiny.llama()
    calibrated.put_into(quantized)
    tokens, lengths = (tensor[schedule().sequences(0, 6)] for tensor in (data.tokens, data.lengths))
    log_q, log_p = (torch.log_softmax(m(input_ids=tokens).logits.double(), -1) for m in (quantized, teacher))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    predicted = torch.arange(1, 20)[None] < lengths[:, None]
    assert uninterrupted[1][0]["kl"] == pytest.approx(kl[:, :-1][predicted].mean().item(), rel=1e-4)


@pytest.mark.parametrize(("stop", "resumed_from"), [(1, 0), (3, 2), (5, 4)])
def test_a_killed_run_ends_in_the_same_bits(calibrated, uninterrupted, data, tmp_path, stop: int, resumed_from: int):
    with pytest.raises(KeyboardInterrupt):
        train(make_student(calibrated), data, tmp_path, killed_after(stop))
    begun: list[int] = []
    student = make_student(calibrated)
    log = train(student, data, tmp_path, lambda d: begun.append(d) or quietly(d))
    assert begun == [resumed_from]
    assert_same_end(student, log, uninterrupted)


def test_a_truncated_checkpoint_is_passed_over_with_a_warning(calibrated, uninterrupted, data, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(make_student(calibrated), data, tmp_path, killed_after(5))
    newest = sorted(tmp_path.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    begun: list[int] = []
    student = make_student(calibrated)
    log = train(student, data, tmp_path, lambda d: begun.append(d) or quietly(d))
    assert "step-00000004.safetensors cannot be used" in capsys.readouterr().err
    assert begun == [2]
    assert_same_end(student, log, uninterrupted)


@pytest.mark.parametrize("learns", [Learns(), Learns("minmax"), Learns("learned", embeddings=True)], ids=str)
def test_so_does_one_of_groups_zero_points_and_partly_frozen_projections(data, tmp_path: Path, learns: Learns):
    scheme = Scheme(
        Weights(3, symmetric=False, group=8),
        Activations(8, dynamic=True),
        KVCache(4),
        head=Weights(8),
    )
    valid = torch.ones_like(data.tokens, dtype=torch.bool)
    options = Options("rtn", {}, batch=6, measure=False)
    start = calibrate(family("phi3"), data.tokens, valid, scheme, options, None, lambda: None).model

    def fresh() -> Student:
        own = dataclasses.replace(start, latent={name: latent.clone() for name, latent in start.latent.items()})
        model = family("phi3")
        return prepare(model, own, frozen_rows("ov", layout.linears(model)), learns, torch.float32)

    def end(student: Student, folder: Path, begin: Any) -> tuple[Student, list[dict[str, Any]]]:
        folder.mkdir(exist_ok=True)
        return student, train(student, theirs, folder, begin, head=family("phi3").lm_head.weight)

    theirs = record(family("phi3"), data.tokens, data.lengths, 6, "float32", lambda n: None)

    expected = end(fresh(), tmp_path / "whole", quietly)
    with pytest.raises(KeyboardInterrupt):
        end(fresh(), tmp_path / "killed", killed_after(5))
    student, log = end(fresh(), tmp_path / "killed", quietly)
    assert_same_end(student, log, expected)
    assert 0 < log[-1]["kl"] < log[0]["kl"]


def test_each_step_is_as_long_as_the_schedule_says(calibrated, data, tmp_path: Path):
    """AdamW's first step moves each number by the rate, whatever its gradient (2.5e-4 is a quarter of the peak)."""
    student, start = make_student(calibrated), make_student(calibrated)
    plan = schedule(steps=4, warmup=1.0, weight_decay=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(student, data, tmp_path, killed_after(1), plan)
    moved = torch.stack([(m - start.masters[name]).abs().max() for name, m in student.masters.items()]).detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 2.5e-4), rtol=0.01, atol=0)


def test_the_gradient_is_clipped_at_its_global_norm(calibrated, data, tmp_path: Path):
    """AdamW's first moment after one step is a tenth of the clipped gradient (betas 0.9, 0.95)."""
    student = make_student(calibrated)
    log = train(student, data, tmp_path, quietly, schedule(clip=1e-3, checkpoint_every=1, steps=2))
    assert log[0]["gradient_norm"] > 0.01
    moments = {k: v for k, v in load_file(tmp_path / "step-00000001.safetensors").items() if k.startswith("exp_avg/")}
    norm = torch.stack([moment.double().square().sum() for moment in moments.values()]).sum().sqrt()
    assert norm.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("divergence", ["forward", "symmetric"])
@pytest.mark.parametrize("learns", [Learns(), Learns("learned", embeddings=True)], ids=str)
def test_one_forward_of_four_and_four_of_one_give_the_same_step(
    calibrated, data, tmp_path: Path, learns: Learns, divergence: str
):
    """Loss, every norm, and the masters after the step, to what the order of float32's sums may change: a few parts in
    10^7, and where an input is rounded to the neighbouring code of INT16, a few in 10^5."""
    weights, ends = LossWeights(0.3, 0.7, 1.5, 16, divergence, 0.1), []
    for accumulate in (1, 2, 4):
        student, folder = make_student(calibrated, learns), tmp_path / str(accumulate)
        folder.mkdir()
        plan = schedule(batch=4, accumulate=accumulate, steps=1, warmup=0.0)
        (row,) = train(student, data, folder, quietly, plan, weights)
        ends.append((row, student))
    for row, student in ends[1:]:
        assert row == pytest.approx(ends[0][0], rel=1e-4)
        for name, master in student.masters.items():
            gradient = ends[0][1].masters[name].detach() - make_student(calibrated, learns).masters[name].detach()
            difference = (master - ends[0][1].masters[name]).detach()
            assert difference.norm() <= 2e-2 * gradient.norm(), name  # AdamW's first step is the gradient's sign


def test_gradient_checkpointing_changes_no_bit(calibrated, uninterrupted, data, tmp_path: Path):
    student = make_student(calibrated)
    loop.save_memory(student.model)
    log = train(student, data, tmp_path, quietly)
    assert_same_end(student, log, uninterrupted)


def test_norms_by_role_are_those_of_the_roles_gradients(calibrated, data, tmp_path: Path):
    """And make up, with that of the norms, the whole one."""
    student, kept = make_student(calibrated), {}
    add = student.collect_gradients
    student.collect_gradients = lambda last_pass: (
        add(last_pass) or kept.update({k: m.grad.clone() for k, m in student.masters.items()})
    )
    (row,) = train(student, data, tmp_path, quietly, schedule(steps=1, clip=1e9))
    for role in ("q", "k", "gate", "up", "down"):
        squares = [g.double().square().sum() for key, g in kept.items() if f".{role}_proj." in key]
        assert len(squares) == 2
        assert row[f"gradient_norm.{role}"] == pytest.approx(sum(squares).item() ** 0.5)
    whole = sum(g.double().square().sum() for g in kept.values()).item() ** 0.5
    assert row["gradient_norm"] == pytest.approx(whole)


def test_batchmean_weighs_the_divergence_as_torch_would(calibrated, data, tmp_path: Path):
    """torch's kl_div by batchmean on [batch, length, vocabulary] divides a sum over tokens by the batch alone."""
    weights, plan = LossWeights(0.5, 0.5, 1.0, 16), schedule(steps=1)
    (row,) = train(make_student(calibrated), data, tmp_path, quietly, plan, weights, batchmean=True)
    quantized, teacher = tiny.llama(), tiny.llama()
    calibrated.put_into(quantized)
    chosen = plan.sequences(0, 6)
    log_q, log_p = (
        torch.log_softmax(m(input_ids=data.tokens[chosen]).logits.double(), -1) for m in (quantized, teacher)
    )
    mask = (torch.arange(1, 20)[None] < data.lengths[chosen][:, None])[..., None]
    log_q, log_p = ((log * mask) for log in (log_q[:, :-1], log_p[:, :-1]))
    both = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert row["loss"] == pytest.approx(0.5 * both.item() + 0.5 * row["ce"], rel=1e-4)
    assert row["kl"] == pytest.approx(2 * both.item() / (data.lengths[chosen].sum().item() - 2), rel=1e-4)


def test_weight_decay_is_for_the_linears_and_scales_have_a_rate_of_their_own(calibrated):
    student = make_student(calibrated, Learns("learned", embeddings=True))
    groups = loop._optimizer(student, schedule(weight_decay=0.3)).param_groups
    settings = {id(p): (group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}
    expected = {"linear": (1e-3, 0.3), "scale": (1e-4, 0.0), "other": (1e-3, 0.0)}
    assert len(settings) == len(student.masters)
    for name, master in student.masters.items():
        kind = "scale" if name.endswith(".scale") else "linear" if "_proj" in name else "other"
        assert settings[id(master)] == expected[kind], name


@pytest.mark.parametrize("learns", [Learns("static"), Learns("minmax"), Learns("learned")], ids=str)
def test_a_student_of_quantized_inputs_and_cache_learns(data, tmp_path: Path, learns: Learns):
    """W4A8KV4: the gradient passes the inputs' and the cache's grids straight through."""
    valid = torch.ones_like(data.tokens, dtype=torch.bool)
    options = Options("gptq", {}, batch=6, measure=False)
    scheme = Scheme(Weights(4), Activations(8, dynamic=True), KVCache(4))
    start = calibrate(tiny.llama(), data.tokens, valid, scheme, options, None, lambda: None).model
    plan = schedule(batch=6, steps=20, warmup=0.1, checkpoint_every=99)
    log = train(make_student(start, learns), data, tmp_path, quietly, plan)
    assert log[-1]["kl"] < 0.5 * log[0]["kl"]
