"""How long a step is, and which sequences it sees."""

from typing import Any

import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from pipeline.distill.schedule import Schedule, fitting_rate

LR = 1e-3
REST = {
    "accumulate": 1,
    "scale_lr": 1e-5,
    "min_lr": 0.1,
    "weight_decay": 0.0,
    "clip": 1.0,
    "checkpoint_every": 9,
    "dtype": "float32",
}


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"steps": 6, "batch": 2, "lr": LR, "warmup": 0.3, "seed": 0, **REST, **changes})


@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 100), (0.3, 10), (0.0, 7), (1.0, 4)])
def test_the_rate_rises_in_a_line_then_falls_in_a_cosine(warmup: float, steps: int):
    rates = [LR * schedule(steps=steps, warmup=warmup).factor(step) for step in range(steps)]
    warm = max(1, round(warmup * steps))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warm, steps, min_lr_rate=0.1)
    for step, rate in enumerate(rates):
        if step < warm:  # theirs starts from zero, ours from the first fraction, so that no step is lost
            assert rate == pytest.approx(LR * (step + 1) / warm)
        else:
            assert rate == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert max(rates) == pytest.approx(LR)
    assert min(rates[warm:], default=LR) >= LR * 0.1


def test_every_epoch_is_a_permutation_of_its_own():
    plan = schedule(batch=4, steps=15)
    drawn = [index for step in range(15) for index in plan.sequences(step, 10)]
    epochs = [drawn[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_order_is_a_function_of_seed_and_step():
    plan = schedule(batch=3)
    later_first = [schedule(batch=3).sequences(step, 10) for step in reversed(range(8))]
    assert later_first[::-1] == [plan.sequences(step, 10) for step in range(8)]
    assert plan.sequences(0, 10) != schedule(batch=3, seed=1).sequences(0, 10)


def test_processes_and_forwards_share_a_step_evenly_and_miss_nothing():
    sequences = [*range(100, 112)]
    for processes, accumulate in ((1, 1), (1, 4), (4, 1), (2, 3), (3, 2)):
        plan = schedule(batch=12, accumulate=accumulate)
        parts = [plan.parts(sequences, rank, processes) for rank in range(processes)]
        assert {len(part) for mine in parts for part in mine} == {12 // processes // accumulate}
        assert sorted(i for mine in parts for part in mine for i in part) == sequences


@pytest.mark.parametrize(
    ("rotated", "fisher", "rate"), [(True, True, 2e-4), (True, False, 2e-5), (False, True, 1e-4), (False, False, 1e-4)]
)
def test_the_rate_fits_the_start(rotated: bool, fisher: bool, rate: float):
    """As params.yaml says of distill.lr."""
    assert fitting_rate(rotated, fisher) == rate
