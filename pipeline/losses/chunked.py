"""The distillation loss, from hidden states, a chunk of tokens at a time.

loss = ce * CE(student, next token) + kl * T^2 * D(teacher, student at temperature T)
       + hidden * |h_s - h_t|^2 / |h_t|^2

All are means over valid tokens. D is KL(teacher || student) (forward), KL(student || teacher) (reverse), or the mean of
the two (symmetric, half of Jeffreys' divergence). h are the last hidden states, which the head reads.

Logits are the memory: [tokens, vocabulary] in float32 is 400 MB for 2048 tokens of SmolLM2. Here they are made, turned
into their gradient and dropped chunk by chunk within the forward, so that one chunk of them is all that is ever held.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

CACHED = 2**19  # numbers of a buffer that a CPU's caches hold, several of them


@dataclass(frozen=True)
class LossWeights:
    """ce, kl, hidden: weights of the terms. temperature: of both distributions under KL. chunk: tokens held at once.
    divergence: a name of DIVERGENCES. back: differentiable; takes the student's states to where the hidden term holds
    them against the teacher's. None: they are there."""

    ce: float
    kl: float
    temperature: float = 1.0
    chunk: int = 256
    divergence: str = "forward"
    hidden: float = 0.0
    back: Callable[[Tensor], Tensor] | None = None


class Loss(NamedTuple):
    """total, differentiable by the student's hidden states and head; the terms, unweighted: float64 scalars."""

    total: Tensor
    ce: Tensor
    kl: Tensor
    hidden: Tensor


class _ChunkedLoss(torch.autograd.Function):
    """Loss, and its gradient by the student's hidden states and, where it learns, the student's head."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        head: Tensor,
        teacher: Tensor,
        teacher_head: Tensor,
        targets: Tensor,
        weights: LossWeights,
        counted: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, wide = len(student), torch.promote_types(student.dtype, torch.float32)
        room = _Room(min(weights.chunk, max(tokens, 1)), head, wide, weights)
        gradient = torch.empty_like(student)
        by_head = torch.zeros_like(head, dtype=wide) if ctx.needs_input_grad[1] else None
        sums = torch.zeros(2, dtype=torch.float64, device=student.device)
        for start in range(0, tokens, weights.chunk):
            rows = slice(start, min(start + weights.chunk, tokens))
            terms, by_logits = room.chunk(student[rows], head, teacher[rows], teacher_head, targets[rows])
            sums += terms
            torch.mm(by_logits, head, out=gradient[rows])
            if by_head is not None:
                by_head += by_logits.T @ student[rows]
        ctx.save_for_backward(gradient.div_(counted), None if by_head is None else by_head.div_(counted))
        ce, kl = sums / counted
        ctx.mark_non_differentiable(ce, kl)
        return (weights.ce * ce + weights.kl * kl).to(wide), ce, kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, by_head = ctx.saved_tensors
        by_head = None if by_head is None else by_head * grads[0]
        return gradient * grads[0].to(gradient.dtype), by_head, None, None, None, None, None


def _hidden(student: Tensor, teacher: Tensor, back: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Sum over tokens of ||h_s - h_t||^2 / ||h_t||^2, in float32 at least."""
    wide = torch.promote_types(student.dtype, torch.float32)
    ours = student.to(wide) if back is None else back(student.to(wide))
    apart, size = ours - teacher.to(wide), teacher.to(wide).square().sum(dim=1)
    return (apart.square().sum(dim=1) / size.clamp(min=torch.finfo(wide).tiny)).sum()


class _Room:
    """Buffers that every chunk reuses: fresh ones would cost more in page faults than the sums.

    Logits [chunk, vocabulary] are products, which want many rows; what comes then passes over them again and again, a
    few rows at a time, so that on a CPU these stay in its caches.
    """

    def __init__(self, chunk: int, head: Tensor, wide: torch.dtype, weights: LossWeights) -> None:
        self.weights = weights
        self.logits = [head.new_empty(chunk, len(head)) for _ in range(2)]
        self.rows = min(chunk, max(1, CACHED // len(head))) if head.device.type == "cpu" else chunk
        self.wide = [head.new_empty(self.rows, len(head), dtype=wide) for _ in range(4)]

    def chunk(
        self, student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums of CE and of T^2 D over a chunk, float64 [2], and the loss's gradient by its logits."""
        ours, theirs = (room[: len(student)] for room in self.logits)
        torch.mm(student, head.T, out=ours)
        torch.mm(teacher, teacher_head.T, out=theirs)
        parts = zip(ours.split(self.rows), theirs.split(self.rows), targets.split(self.rows), strict=True)
        return torch.stack([self._few(*part) for part in parts]).sum(dim=0), ours

    def _few(self, ours: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
        """The sums over a few rows, whose student's logits become the loss's gradient by them."""
        t, ce, kl = self.weights.temperature, self.weights.ce, self.weights.kl
        z_s, z_t, q, p = (room[: len(ours)] for room in self.wide)
        gold = targets[:, None]
        z_s.copy_(ours)
        log_sum = _exponentials(z_s, q)
        cross = (log_sum - z_s.gather(1, gold)).sum().double()
        by_ce = q.div(log_sum.exp()).mul_(ce) if ce and t != 1 else None
        if t != 1:
            z_s.div_(t)
            log_sum = _exponentials(z_s, q)
        q.div_(log_sum.exp())
        z_t.copy_(theirs)
        if t != 1:
            z_t.div_(t)
        log_sum_t = _exponentials(z_t, p)
        p.div_(log_sum_t.exp())
        z_t.sub_(z_s).sub_(log_sum_t - log_sum)  # log p - log q
        if by_ce is None and ce:
            by_ce = z_s.copy_(q).mul_(ce)
        divergence, gradient = DIVERGENCES[self.weights.divergence](z_t, p, q)
        if kl * t != 1:
            gradient.mul_(kl * t)
        if by_ce is not None:
            gradient.add_(by_ce)
        if ce:
            gradient.scatter_add_(1, gold, torch.full_like(gradient[:, :1], -ce))
        ours.copy_(gradient)
        return torch.stack([cross, divergence * t * t])


def _forward(log_ratio: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p log(p / q); by z_s its gradient is q - p."""
    return log_ratio.mul_(p).sum().double(), q.sub_(p)


def _reverse(log_ratio: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = -sum q log(p / q); by z_s its gradient is -q (log(p / q) + KL)."""
    kl = -(log_ratio * q).sum(dim=1, keepdim=True)
    return kl.sum().double(), log_ratio.add_(kl).mul_(q).neg_()


def _symmetric(log_ratio: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(p || q) + KL(q || p)) / 2, and half the sum of the two gradients."""
    total = (log_ratio * p).sum().double()
    backward, gradient = _reverse(log_ratio, p, q)
    return (total + backward) / 2, gradient.add_(q).sub_(p).div_(2)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": _forward,
    "reverse": _reverse,
    "symmetric": _symmetric,
}
"""From log(p / q), p and q, which they may use up: the divergence, summed, and its gradient by the student's logits."""


def _exponentials(z: Tensor, out: Tensor) -> Tensor:
    """Shift each row of z to a maximum of 0, put exp(z) into `out`, and return log(sum(out)): [rows, 1]."""
    z.sub_(z.amax(dim=1, keepdim=True))
    return torch.exp(z, out=out).sum(dim=1, keepdim=True).log()


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    heads: tuple[Tensor, Tensor],
    tokens: Tensor,
    valid: Tensor,
    weights: LossWeights,
    counted: int | None = None,
) -> Loss:
    """Loss of predicting each valid next token.

    Args:
        student, teacher: last hidden states [batch, length, hidden].
        heads: the student's and the teacher's head weights [vocabulary, hidden]; the teacher's is a constant.
        tokens: int64 [batch, length]. valid: bool of the same shape; positions whose next token is valid count.
        weights: of the terms, the temperature, the divergence and the chunk.
        counted: how many tokens the means are over; None: those that count here. A part of a larger step passes the
            whole step's, so that the parts' losses and gradients add up to the step's.

    Returns:
        The loss and its terms, in nats a token; the hidden term has no unit.
    """
    mask = valid[:, 1:]
    whole = bool(mask.all())  # the common case needs no copy by index
    ours, theirs, targets = (
        part.flatten(0, 1) if whole else part[mask] for part in (student[:, :-1], teacher[:, :-1], tokens[:, 1:])
    )
    number = len(targets) if counted is None else counted
    total, ce, kl = _ChunkedLoss.apply(ours, heads[0], theirs, heads[1], targets, weights, number)
    if not weights.hidden:
        return Loss(total, ce, kl, torch.zeros_like(ce))
    hidden = _hidden(ours, theirs, weights.back) / number
    return Loss(total + weights.hidden * hidden, ce, kl, hidden.detach().double())
