"""Knowledge distillation of a fake-quantized student: the loop over steps.

The teacher is not run here: its last hidden states were recorded (targets.py), and its head makes logits of them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pipeline.distill import checkpoints
from pipeline.distill.norms import gradient_norms
from pipeline.distill.schedule import Schedule
from pipeline.distill.student import Student
from pipeline.distill.targets import Targets
from pipeline.losses.chunked import LossWeights, distillation_loss
from pipeline.models import forward, layout

STUCK_STEPS = 5  # a loss of zero for so long means that the student is the teacher, or that nothing is learned from
LOG_COLUMNS = ("step", "loss", "ce", "kl", "hidden", "lr", "tokens", "gradient_norm")  # then gradient_norm.{role}
Report = Callable[[dict[str, Any]], object]


def train(
    student: Student,
    teacher_head: Tensor,
    data: Targets,
    schedule: Schedule,
    weights: LossWeights,
    folder: Path,
    begin: Callable[[int], Report],
    batchmean: bool = False,
) -> list[dict[str, Any]]:
    """Train a student to the end of the schedule, going on from the newest checkpoint in `folder`.

    Args:
        student: changed in place. teacher_head: the float model's head weight [vocabulary, hidden].
        data: token ids, and the float model's hidden states over them.
        folder: of the checkpoints.
        begin: called with the step to start from; what it returns is called after each step with its row of the log.
        batchmean: weigh the KL as a sum over a sequence's tokens, a mean over sequences, as torch's kl_div does by
            `batchmean` on logits [batch, length, vocabulary]; the CE stays a mean over tokens. The log's kl is a mean
            over tokens all the same.

    Returns:
        A row for each step: LOG_COLUMNS (loss as minimized; ce, kl in nats a token; gradient norm before clipping;
        tokens seen so far), and the norm of the gradient by each role's trained weights; 0 where all of it is frozen.

    Raises:
        ValueError: a loss or gradient that is not finite, or a loss that stays at zero; names the step and the layer.
    """
    processes, read = student.processes, forward.torch_dtype(schedule.dtype)
    teacher_head = teacher_head.to(device=processes.device, dtype=read)
    head = None if student.learns.embeddings else student.head(read)
    optimizer = _optimizer(student, schedule)
    done, log = checkpoints.restore(folder, student, optimizer)
    student.refresh()
    report = begin(done)
    for step in range(done, schedule.steps):
        sequences = schedule.sequences(step, len(data))
        counted = data.predicted(sequences)
        kl = weights.kl * (counted / len(sequences) if batchmean else 1)
        parts = schedule.parts(sequences, processes.rank, processes.count)
        weighed = dataclasses.replace(weights, kl=kl)
        terms = _backward(student, (head, teacher_head), data, parts, weighed, counted, schedule.dtype, step)
        norm, by_role = gradient_norms(student)
        _update(student, optimizer, schedule, norm, step)
        tokens = counted + (log[-1]["tokens"] if log else 0)
        values = (step + 1, *terms, schedule.lr * schedule.factor(step), tokens, norm.item())
        log.append(dict(zip(LOG_COLUMNS, values, strict=True)) | by_role)
        if len(log) >= STUCK_STEPS and all(abs(row["loss"]) < 1e-9 for row in log[-STUCK_STEPS:]):
            raise ValueError(
                f"the loss has been zero for {STUCK_STEPS} steps, at step {step + 1}; there is nothing to learn"
            )
        report(log[-1])
        if (step + 1) % schedule.checkpoint_every == 0 and step + 1 < schedule.steps:
            checkpoints.save(folder, step + 1, student, optimizer, log)
    return log


def _update(student: Student, optimizer: torch.optim.AdamW, schedule: Schedule, norm: Tensor, step: int) -> None:
    """One step of the optimizer, on gradients clipped by their norm, at the schedule's rate.

    Raises:
        ValueError: the norm is not finite.
    """
    if not bool(norm.isfinite()):
        bad = [name for name, m in student.masters.items() if not bool(m.grad.isfinite().all())]  # type: ignore[union-attr]
        raise ValueError(f"the gradient is not finite at step {step + 1}, in {bad[-1] if bad else 'its norm'}")
    nn.utils.clip_grads_with_norm_(student.masters.values(), schedule.clip, norm.float())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * schedule.factor(step)
    optimizer.step()
    optimizer.zero_grad()
    student.refresh()


def save_memory(model: PreTrainedModel) -> None:
    """Gradient checkpointing: keep each layer's input alone, and run the layer again in the backward."""
    for layer in layout.decoder_layers(model)[1]:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _optimizer(student: Student, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; weight decay is for the linears, and learned scales have a rate of their own."""
    groups: dict[str, list[nn.Parameter]] = {"linears": [], "scales": [], "others": []}
    for key, master in student.masters.items():
        linear = key.removesuffix(".weight") in student.trained
        groups["linears" if linear else "scales" if key.endswith(".scale") else "others"].append(master)
    rates = {"linears": schedule.lr, "scales": schedule.scale_lr, "others": schedule.lr}
    decay = {"linears": schedule.weight_decay, "scales": 0.0, "others": 0.0}
    settings = [
        {"params": masters, "lr": rates[name], "peak": rates[name], "weight_decay": decay[name]}
        for name, masters in groups.items()
        if masters
    ]
    optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.95), fused=True)
    for master in student.masters.values():  # now: between the first step's activations they would leave holes
        optimizer.state[master] = {
            "step": torch.zeros((), device=master.device),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }
    return optimizer


def _backward(
    student: Student,
    heads: tuple[Tensor | None, Tensor],
    data: Targets,
    parts: list[list[int]],
    weights: LossWeights,
    counted: int,
    dtype: str,
    step: int,
) -> list[float]:
    """Forward and backward over this process's share of a step: the masters' gradients, and the loss and its terms.

    The terms are those of the whole step; the gradients are this process's part of it. heads: the student's (None: it
    learns, and is taken as it is) and the teacher's, in the loss's dtype. parts: the share, forward by forward.
    counted: the tokens that the whole step predicts.
    """
    processes, read = student.processes, forward.torch_dtype(dtype)
    sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
    bad: list[list[int]] = []
    for part in parts:
        head = student.head(read) if heads[0] is None else heads[0]
        tokens, valid, target = (tensor.to(processes.device) for tensor in data.rows(part))
        with forward.autocast(dtype, processes.device):
            hidden = forward.hidden_states(student.model, tokens)
        both = head, heads[1]
        loss = distillation_loss(hidden.to(read), target.to(read), both, tokens, valid, weights, counted)
        sums += torch.stack([term.detach().double() for term in loss])
        if not bool(loss.total.isfinite()):
            bad.append(part)
        loss.total.backward()
        student.collect_gradients(last_pass=part is parts[-1])
    processes.sum_([sums])
    if not bool(sums.isfinite().all()):  # here, or in another process; all of them run the layers once more
        where = _first_bad(student, data.rows((bad or parts)[0])[0], dtype)
        raise ValueError(f"the loss is {float(sums[0])} at step {step + 1}: {where if bad else 'in another process'}")
    return sums.tolist()


def _first_bad(student: Student, batch: Tensor, dtype: str) -> str:
    """Which layer's output is the first that is not finite."""
    prefix, layers = layout.decoder_layers(student.model)
    bad: list[int] = []

    def see(index: int, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if not bool(states.isfinite().all()):
            bad.append(index)

    handles = [layer.register_forward_hook(lambda _, __, out, i=i: see(i, out)) for i, layer in enumerate(layers)]
    device = student.processes.device
    with torch.no_grad(), forward.autocast(dtype, device):
        forward.hidden_states(student.model, batch.to(device))
    for handle in handles:
        handle.remove()
    where = (
        f"{prefix}.{bad[0]} is the first layer whose output is not finite"
        if bad
        else "every layer's output is finite, the head's or the loss is not"
    )
    return f"{where}; lower distill.lr"
