"""distill: train the quantized student to say what the teacher says, with some projections frozen."""

import dataclasses
import time
from pathlib import Path

import pandas as pd

from pipeline import artifacts, models, params, progress
from pipeline.corpus import Corpus
from pipeline.distill import loop, losses
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.student import prepare
from pipeline.quant.model import QuantizedModel
from stages import run


def work() -> None:
    args = run.paths("distill", "teacher", "corpus", "calibration", "signals", "out")
    loaded = params.load()
    knobs = loaded.distill
    artifacts.reading(args.teacher, artifacts.TEACHER)
    teacher, base = models.load_model(args.teacher), models.load_model(args.teacher)
    data = Corpus.load(args.corpus).train()
    start, calibration = QuantizedModel.load(args.calibration)
    freeze = _suggested(args.signals) if knobs.freeze == "auto" else knobs.freeze
    frozen = frozen_rows(freeze, [linear for linear in models.linears(base) if linear.name in start.codes])
    models.cast_linears(teacher, knobs.dtype)
    student = prepare(base, start, frozen, knobs.scale, knobs.train_norms, models.torch_dtype(knobs.dtype))

    inputs = {
        "artifacts": [artifacts.fingerprint(folder) for folder in (args.teacher, args.corpus, args.calibration)],
        "knobs": {**dataclasses.asdict(knobs), "freeze": freeze, "checkpoint_every": 0},
        "seed": loaded.seed,
    }
    scratch = progress.scratch("distill", inputs)
    schedule = loop.Schedule(
        steps=knobs.steps,
        batch=knobs.batch,
        lr=knobs.lr,
        warmup=knobs.warmup,
        min_lr=knobs.min_lr,
        weight_decay=knobs.weight_decay,
        clip=knobs.clip,
        checkpoint_every=knobs.checkpoint_every,
        dtype=knobs.dtype,
        seed=loaded.seed + knobs.seed,
    )
    weights = losses.LossWeights(knobs.ce, knobs.kl, knobs.temperature, knobs.chunk)
    log = loop.train(student, teacher, data, schedule, weights, scratch, lambda done: _Bar(knobs.steps, done).show)
    trained = student.finished()
    facts = {
        "freeze": freeze,
        "freeze_knob": knobs.freeze,
        "frozen": {name: "all" if rows is None else len(rows) for name, rows in sorted(frozen.items())},
        "scale": knobs.scale,
        "steps": knobs.steps,
        "seed": loaded.seed,
        "method": calibration.get("method", ""),
    }
    trained.save(args.out, facts, {"log": pd.DataFrame(log, columns=list(loop.LOG_COLUMNS))})
    progress.clear("distill")


def _suggested(folder: str) -> str:
    """The freeze policy that analyze suggests."""
    facts = artifacts.reading(folder, artifacts.SIGNALS)
    found = artifacts.read_json(Path(folder) / "suggestion.json")["freeze"][facts["suggested_by"]]
    reason = found.get("reason", f"the gradients of {facts['suggested_by']} suggest")
    print(f"distill: freeze auto: {found['policy']}, as {reason}", flush=True)
    return found["policy"]


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
