"""The distillation loss, from hidden states, a chunk of tokens at a time.

loss = ce * CE(student, next token) + kl * T^2 * KL(teacher || student at temperature T), both means over valid tokens.

Logits are the memory: [tokens, vocabulary] in float32 is 400 MB for 2048 tokens of SmolLM2. Here they are made, turned
into their gradient and dropped chunk by chunk within the forward, so that one chunk of them is all that is ever held.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """ce, kl: weights of the two terms. temperature: of both distributions under KL. chunk: tokens held at once."""

    ce: float
    kl: float
    temperature: float = 1.0
    chunk: int = 256


class _ChunkedLoss(torch.autograd.Function):
    """Loss and its gradient by the student's hidden states; the head and the teacher are constants."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        heads: tuple[Tensor, Tensor],
        targets: Tensor,
        weights: LossWeights,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, wide = len(student), torch.promote_types(student.dtype, torch.float32)
        room = _Room(min(weights.chunk, tokens), heads, student.dtype, wide)
        gradient = torch.empty_like(student)
        ce_sum = kl_sum = torch.zeros((), dtype=torch.float64)
        for start in range(0, tokens, weights.chunk):
            rows = slice(start, min(start + weights.chunk, tokens))
            ce, kl, by_logits = room.chunk(student[rows], teacher[rows], heads, targets[rows], weights)
            ce_sum, kl_sum = ce_sum + ce, kl_sum + kl
            torch.mm(by_logits, heads[0], out=gradient[rows])
        ctx.save_for_backward(gradient.div_(tokens))
        ce_mean, kl_mean = ce_sum / tokens, kl_sum / tokens
        ctx.mark_non_differentiable(ce_mean, kl_mean)
        return (weights.ce * ce_mean + weights.kl * kl_mean).to(wide), ce_mean, kl_mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None


class _Room:
    """Buffers [chunk, vocabulary] that every chunk reuses: fresh ones would cost more in page faults than the sums."""

    def __init__(self, chunk: int, heads: tuple[Tensor, Tensor], narrow: torch.dtype, wide: torch.dtype) -> None:
        shape = chunk, heads[0].shape[0]
        self.logits = torch.empty(shape, dtype=narrow)
        self.z_s, self.z_t, self.q, self.p = (torch.empty(shape, dtype=wide) for _ in range(4))

    def chunk(
        self,
        student: Tensor,
        teacher: Tensor,
        heads: tuple[Tensor, Tensor],
        targets: Tensor,
        weights: LossWeights,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of CE and of T^2 KL over a chunk, and the loss's gradient by its logits times the number of tokens.

        With q = softmax(z_s), p = softmax(z_t): KL = sum p (z_t - z_s) - log Z_t + log Z_s; its gradient is q - p.
        """
        n, t = len(student), weights.temperature
        narrow, z_s, z_t, q, p = (b[:n] for b in (self.logits, self.z_s, self.z_t, self.q, self.p))
        gold = targets[:, None]
        z_s.copy_(torch.mm(student, heads[0].T, out=narrow))
        log_sum = _exponentials(z_s, q)
        ce = (log_sum - z_s.gather(1, gold)).sum().double()
        by_ce = None
        if weights.ce and t != 1:
            by_ce = q.div(log_sum.exp()).mul_(weights.ce)
        if t != 1:
            z_s.div_(t)
            log_sum = _exponentials(z_s, q)
        z_t.copy_(torch.mm(teacher, heads[1].T, out=narrow))
        if t != 1:
            z_t.div_(t)
        log_sum_t = _exponentials(z_t, p)
        p.div_(log_sum_t.exp())
        kl = (z_t.sub_(z_s).mul_(p).sum(dim=1, keepdim=True) - log_sum_t + log_sum).sum().double() * t * t
        q.div_(log_sum.exp())
        if weights.ce and t == 1:  # both terms share q
            gradient = q.mul_(weights.ce + weights.kl).sub_(p, alpha=weights.kl)
        else:
            gradient = q.sub_(p).mul_(weights.kl * t)
            if by_ce is not None:
                gradient.add_(by_ce)
        if weights.ce:
            gradient.scatter_add_(1, gold, torch.full_like(gradient[:, :1], -weights.ce))
        return ce, kl, narrow.copy_(gradient)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of predicting each valid next token.

    Args:
        student, teacher: last hidden states [batch, length, hidden].
        heads: the student's and the teacher's head weights [vocabulary, hidden], constants.
        tokens: int64 [batch, length]. valid: bool of the same shape; positions whose next token is valid count.
        weights: of the terms, the temperature and the chunk.

    Returns:
        The loss, differentiable by `student`, the mean CE and the mean T^2 KL, scalars in nats a token.
    """
    counted = valid[:, 1:]
    return _ChunkedLoss.apply(
        student[:, :-1][counted], teacher[:, :-1][counted], heads, tokens[:, 1:][counted], weights
    )
