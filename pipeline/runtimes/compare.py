"""What a runtime predicts and writes, beside what the student and the teacher do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.runtimes.opened import Predictions

ROWS = 64  # positions whose distributions are held at once
LEAD = 0.2  # nats by which the likeliest token leads where it counts as clear
LEAST = 1e-12  # of the probability of all tokens that are not told of


class Agreement(NamedTuple):
    """Over all positions: KL(reference || runtime) in nats, the share with the same likeliest token, this share where
    the reference's leads by LEAD, and the share of the positions where it does."""

    kl: float
    top1: float
    top1_clear: float
    clear: float


@dataclass
class Comparison:
    """Sums over the positions of some sequences; `add` one after the other."""

    kl: float = 0.0
    same: int = 0
    clear: int = 0
    same_clear: int = 0
    positions: int = 0
    largest: float = 0.0  # reference logit, of magnitude
    difference: float = 0.0  # of logits, or of the log-probabilities that are told; not a number where one is none
    parts: bool = field(default=False)  # some predictions tell of the likeliest tokens alone

    def add(self, reference: Tensor, predictions: Predictions, valid: Tensor) -> None:
        """Compare a sequence's predictions at the positions whose next token is valid.

        Where a runtime tells of the likeliest tokens alone, all others count as one: the KL is then a lower bound, as
        no coarser view of two distributions sets them further apart (data-processing inequality).

        Args:
            reference: float32 [length, vocabulary] logits. valid: bool [length].
        """
        counted = valid[1:].nonzero().flatten()
        kept = torch.isin(predictions.positions, counted)
        ids = predictions.ids
        for rows in kept.nonzero().flatten().split(ROWS):
            ours, theirs = reference[predictions.positions[rows]], predictions.values[rows]
            log_p = ours.log_softmax(dim=-1)
            if ids is None:
                kl, likeliest = _kl(log_p, theirs.log_softmax(dim=-1)), theirs.argmax(dim=-1)
                difference = (ours - theirs).abs().max()
            else:
                told = log_p.gather(1, ids[rows])
                kl, likeliest = _kl(_with_rest(told), _with_rest(theirs)), ids[rows, 0]
                difference, self.parts = (told - theirs).abs().max(), True
            two = log_p.topk(2, dim=-1)
            same, clear = two.indices[:, 0] == likeliest, two.values[:, 0] - two.values[:, 1] >= LEAD
            self.kl += float(kl.double().sum())
            self.same += int(same.sum())
            self.clear += int(clear.sum())
            self.same_clear += int((same & clear).sum())
            self.positions += len(rows)
            self.largest = max(self.largest, float(ours.abs().max()))
            self.difference = float(torch.maximum(torch.tensor(self.difference), difference))  # keeps what is no number

    @property
    def share(self) -> float:
        """The largest difference of logits, as a share of the largest logit."""
        return self.difference / self.largest

    @property
    def agreement(self) -> Agreement:
        """Of all positions that were added; a KL below zero is float32's rounding, and 0."""
        count = max(self.positions, 1)
        clear = self.same_clear / self.clear if self.clear else 1.0
        return Agreement(max(self.kl, 0.0) / count, self.same / count, clear, self.clear / count)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [n, k], in nats: [n]; what has no probability under p counts nothing."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(dim=-1)


def _with_rest(log_p: Tensor) -> Tensor:
    """Log-probabilities [n, k] of some outcomes, with that of all others: [n, k + 1]."""
    rest = (1 - log_p.double().exp().sum(dim=-1, keepdim=True)).clamp_min(LEAST)
    return torch.cat([log_p, rest.log().to(log_p.dtype)], dim=-1)


def compared(reference: Iterable[Tensor], predictions: Sequence[Predictions], valid: Tensor) -> Comparison:
    """All sequences; the arguments are as `Comparison.add` takes them, a sequence each."""
    comparison = Comparison()
    for one, other, mask in zip(reference, predictions, valid, strict=True):
        comparison.add(one, other, mask)
    return comparison


def of_logits(logits: Iterable[Tensor]) -> list[Predictions]:
    """float32 [length, vocabulary] of each sequence as predictions at each position."""
    return [Predictions(torch.arange(len(values)), values) for values in logits]


def same_tokens(ours: Sequence[int], theirs: Sequence[int], special: frozenset[int], count: int) -> int:
    """How many tokens two continuations have in common before the first that differs, or `count` if none does.

    Both end where a special token stands, as some runtimes stop there and others go on.
    """
    ends = [next((i for i, token in enumerate(text) if token in special), len(text)) for text in (ours, theirs)]
    a, b = list(ours[: ends[0]]), list(theirs[: ends[1]])
    if a == b:
        return count
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
