"""Knowledge distillation of a fake-quantized student: the loop over steps.

The teacher is the float model; both run under the same autocast. What is left out on purpose: gradient accumulation and
more than one process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import models
from pipeline.corpus import valid_mask
from pipeline.distill import checkpoints
from pipeline.distill.losses import LossWeights, distillation_loss
from pipeline.distill.student import Student

STUCK_STEPS = 5  # a loss of zero for so long means that the student is the teacher, or that nothing is learned from


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: see the section `distill` of params.yaml for the units."""

    steps: int
    batch: int
    lr: float
    warmup: float
    min_lr: float
    weight_decay: float
    clip: float
    checkpoint_every: int
    dtype: str
    seed: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then a cosine down to min_lr * lr."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return self.lr * (self.min_lr + (1 - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))

    def sequences(self, step: int, available: int) -> list[int]:
        """Indices of a step's sequences: a new permutation each epoch, a function of seed and step alone."""
        positions = range(step * self.batch, (step + 1) * self.batch)
        orders = {epoch: self._order(epoch, available) for epoch in {p // available for p in positions}}
        return [int(orders[p // available][p % available]) for p in positions]

    def _order(self, epoch: int, available: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, 2**32 + epoch])).permutation(available)


def train(
    student: Student,
    teacher: PreTrainedModel,
    data: tuple[Tensor, Tensor],
    schedule: Schedule,
    weights: LossWeights,
    folder: Path,
    begin: Callable[[int], Any],
) -> list[dict[str, Any]]:
    """Train a student to the end of the schedule, going on from the newest checkpoint in `folder`.

    Args:
        student: changed in place. teacher: the float model, its linears in the forward's dtype.
        data: tokens int64 [sequences, length] and their valid lengths [sequences].
        folder: of the checkpoints.
        begin: called with the step to start from; what it returns is called after each step with its row of the log.

    Returns:
        A row for each step: step, loss, ce, kl (nats a token), lr, gradient_norm (before clipping), tokens seen.

    Raises:
        ValueError: a loss or gradient that is not finite, or a loss that stays at zero; names the step and the layer.
    """
    tokens, lengths = data
    with models.autocast(schedule.dtype):
        heads = models.head_weight(student.model), models.head_weight(teacher)
    if schedule.dtype == "bfloat16":
        heads = heads[0].bfloat16(), heads[1].bfloat16()
    optimizer = torch.optim.AdamW(
        student.masters.values(),
        lr=schedule.lr,
        betas=(0.9, 0.95),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    done, log = checkpoints.restore(folder, student.masters, optimizer)
    student.refresh()
    seen = int(log[-1]["tokens"]) if log else 0
    report = begin(done)
    for step in range(done, schedule.steps):
        rows = schedule.sequences(step, len(tokens))
        batch, valid = tokens[rows], valid_mask(lengths[rows], tokens.shape[1])
        loss, ce, kl = _step_loss(student, teacher, heads, batch, valid, weights, schedule.dtype)
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss is {loss.item()} at step {step + 1}: {_first_bad(student, batch, schedule.dtype)}"
            )
        loss.backward()
        student.collect_gradients()
        norm = nn.utils.clip_grad_norm_(student.masters.values(), schedule.clip)
        if not bool(norm.isfinite()):
            bad = [name for name, master in student.masters.items() if not bool(master.grad.isfinite().all())]  # type: ignore[union-attr]
            raise ValueError(f"the gradient is not finite at step {step + 1}, in {bad[-1] if bad else 'its norm'}")
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.step()
        student.refresh()
        seen += int(valid[:, 1:].sum())
        values = (step + 1, loss.item(), ce.item(), kl.item(), schedule.rate(step), norm.item(), seen)
        log.append(dict(zip(LOG_COLUMNS, values, strict=True)))
        if len(log) >= STUCK_STEPS and all(abs(row["loss"]) < 1e-9 for row in log[-STUCK_STEPS:]):
            raise ValueError(
                f"the loss has been zero for {STUCK_STEPS} steps, at step {step + 1}; there is nothing to learn"
            )
        report(log[-1])
        if (step + 1) % schedule.checkpoint_every == 0 and step + 1 < schedule.steps:
            checkpoints.save(folder, step + 1, student.masters, optimizer, log)
    return log


LOG_COLUMNS: Sequence[str] = ("step", "loss", "ce", "kl", "lr", "gradient_norm", "tokens")


def _step_loss(
    student: Student,
    teacher: PreTrainedModel,
    heads: tuple[Tensor, Tensor],
    batch: Tensor,
    valid: Tensor,
    weights: LossWeights,
    dtype: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with models.autocast(dtype):
        with torch.no_grad():
            target = models.hidden_states(teacher, batch)
        hidden = models.hidden_states(student.model, batch)
    return distillation_loss(hidden.to(heads[0].dtype), target.to(heads[1].dtype), heads, batch, valid, weights)


def _first_bad(student: Student, batch: Tensor, dtype: str) -> str:
    """Which layer's output is the first that is not finite."""
    prefix, layers = models.decoder_layers(student.model)
    bad: list[int] = []

    def see(index: int, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if not bool(states.isfinite().all()):
            bad.append(index)

    handles = [layer.register_forward_hook(lambda _, __, out, i=i: see(i, out)) for i, layer in enumerate(layers)]
    with torch.no_grad(), models.autocast(dtype):
        models.hidden_states(student.model, batch)
    for handle in handles:
        handle.remove()
    where = (
        f"{prefix}.{bad[0]} is the first layer whose output is not finite"
        if bad
        else "every layer's output is finite, the head's or the loss is not"
    )
    return f"{where}; lower distill.lr"
