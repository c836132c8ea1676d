"""distill: train the quantized student to say what the teacher says, with some projections frozen."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.artifacts import contract, progress
from pipeline.calibration.rotation import unturned
from pipeline.distill import loop, parallel
from pipeline.distill.freeze import Frozen, frozen_rows
from pipeline.distill.prepare import prepare
from pipeline.distill.schedule import Schedule, fitting_rate
from pipeline.distill.student import Learns
from pipeline.distill.targets import Targets
from pipeline.knobs import params
from pipeline.knobs.freezing import AUTO
from pipeline.knobs.sections import Distill
from pipeline.losses import chunked
from pipeline.models import float_type, forward, layout, saved
from pipeline.quant.model import QuantizedModel
from stages import run


def work() -> None:
    args = run.begin("distill", "teacher", "targets", "calibration", "signals", "out", accelerated=True)
    loaded = params.load()
    asked = knobs = float_type.settled(loaded.distill, forward.device().type)
    if knobs.processes > 1 and not parallel.launched():
        parallel.launch("stages.distill", sys.argv[1:], knobs.processes)
        return
    contract.reading(args.teacher, contract.TEACHER)
    data = Targets.load(args.targets)
    start, calibration = QuantizedModel.load(args.calibration, latent=True)
    freeze = _suggested(args.signals) if knobs.freeze == AUTO else knobs.freeze
    processes = parallel.join(knobs.shard)
    if knobs.batch % (processes.count * knobs.accumulate):  # a launcher of the user's may have started any number
        raise ValueError(f"distill.batch {knobs.batch} does not divide among {processes.count} x {knobs.accumulate}")
    knobs = dataclasses.replace(asked, lr=_rate(asked.lr, calibration, processes.first))
    model = saved.load_model(args.teacher)
    teacher_head = forward.head_weight(model).detach().to(forward.torch_dtype(knobs.dtype), copy=True)
    rotation_seed = calibration.get("rotation_seed")
    back = unturned(model, rotation_seed) if knobs.hidden and rotation_seed is not None else None
    frozen = frozen_rows(freeze, [linear for linear in layout.linears(model) if linear.name in start.codes])
    learns = Learns(knobs.scale, knobs.train_norms, knobs.train_embeddings)
    student = prepare(model, start, frozen, learns, forward.torch_dtype(knobs.dtype), processes)
    if knobs.gradient_checkpointing:
        loop.save_memory(model)

    inputs = {
        "artifacts": [contract.fingerprint(folder) for folder in (args.teacher, args.targets, args.calibration)],
        "knobs": {**dataclasses.asdict(knobs), "freeze": freeze, "checkpoint_every": 0},
        "seed": loaded.seed,
    }

    def of_all(machine: int) -> int:  # machines may differ, and all must find the same folder
        total = torch.tensor([machine], device=processes.device)
        processes.sum_([total])
        return int(total)

    scratch = progress.scratch("distill", inputs, of_all)
    schedule = _schedule(knobs, loaded.seed)
    weights = chunked.LossWeights(
        knobs.ce, knobs.kl, knobs.temperature, knobs.chunk, knobs.divergence, knobs.hidden, back
    )

    def begin(done: int) -> loop.Report:
        return _Bar(knobs.steps, done).show if processes.first else lambda row: None

    log = loop.train(student, teacher_head, data, schedule, weights, scratch, begin, knobs.kl_reduction == "batchmean")
    trained = student.finished()
    if processes.first:
        trained.save(args.out, _facts(asked, freeze, frozen, schedule, calibration), {"log": pd.DataFrame(log)})
    processes.leave()


def _schedule(knobs: Distill, seed: int) -> Schedule:
    own = {field.name: getattr(knobs, field.name) for field in dataclasses.fields(Schedule)}
    return Schedule(**{**own, "seed": seed + knobs.seed})


def _facts(
    knobs: Distill, freeze: str | list[str], frozen: Frozen, schedule: Schedule, calibration: dict[str, Any]
) -> dict[str, Any]:
    """What the artifact tells of the training."""
    return {
        "freeze": freeze,
        "freeze_knob": knobs.freeze,
        "frozen": {name: "all" if rows is None else len(rows) for name, rows in sorted(frozen.items())},
        "scale": knobs.scale,
        "steps": knobs.steps,
        "seed": schedule.seed,
        "lr": schedule.lr,
        "lr_knob": knobs.lr,
        "method": calibration.get("method", ""),
        "rotation_seed": calibration.get("rotation_seed"),
        **{fact: calibration[fact] for fact in ("coverage", "in_float") if fact in calibration},
    }


def _rate(knob: float | str, calibration: dict[str, Any], says: bool) -> float:
    """The peak learning rate: the knob, or what fits the start, which is said."""
    if not isinstance(knob, str):
        return knob
    rotated, fisher = calibration.get("rotation_seed") is not None, bool(calibration.get("fisher"))
    rate = fitting_rate(rotated, fisher)
    if says:
        start = f"{'rotated' if rotated else 'not rotated'}, {'with' if fisher else 'without'} Fisher information"
        print(f"distill: lr auto: {rate}, as the start is {start}", flush=True)
    return rate


def _suggested(folder: str) -> str:
    """The freeze policy that analyze suggests."""
    facts = contract.reading(folder, contract.SIGNALS)
    suggestion = contract.read_json(Path(folder) / "suggestion.json")["freeze"][facts["suggested_by"]]
    reason = suggestion.get("reason", f"the gradients of {facts['suggested_by']} suggest")
    print(f"distill: freeze auto: {suggestion['policy']}, as {reason}", flush=True)
    return suggestion["policy"]


class _Bar:
    """The progress bar with loss and tokens a second."""

    def __init__(self, steps: int, done: int) -> None:
        if done:
            print(f"distill: going on after step {done} of {steps}", flush=True)
        self.bar = progress.bar("distill", steps, " step", initial=done)
        self.begun = time.monotonic()
        self.steps, self.done = steps, done

    def show(self, row: dict[str, float]) -> None:
        """Advance by a step, given its row of the log."""
        tokens = row["tokens"] / row["step"] * (row["step"] - self.done)
        rate = tokens / (time.monotonic() - self.begun)
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {rate:,.0f} tok/s", refresh=False)
        self.bar.update()
        if row["step"] == self.steps:
            self.bar.close()


if __name__ == "__main__":
    run.main("distill", work)
