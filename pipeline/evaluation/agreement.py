"""Agreement with the teacher on held-out text of the teacher's own: KL divergence and top-1 agreement.

A perplexity under the float model's is no proof of fidelity; these two measure fidelity itself.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.evaluation.items import content_hash

BATCH = 2  # sequences whose logits, the model's and the teacher's, are held at once
ROWS = 16  # positions whose distributions are: few, so that on a CPU these stay in its caches


@torch.inference_mode()
def agreement(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Tensor,
    valid: Tensor,
    advance: Callable[[], object],
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """KL(teacher || model) in nats a token and the share of positions with the same most likely next token.

    Args:
        teacher: the float model; where it is the model itself, it runs once.
        tokens: int64 [sequences, length]. valid: bool of the same shape; positions whose next token is valid count.
        advance: called after each batch.

    Returns:
        kl, top1 and the standard error of each over sequences; and the rows of each sequence for `items.documents`.
    """
    divergences, agreements, rows = [], [], []
    for first, part, mask in zip(range(0, len(tokens), BATCH), tokens.split(BATCH), valid.split(BATCH), strict=True):
        ours = model(input_ids=part, use_cache=False).logits
        theirs = ours if model is teacher else teacher(input_ids=part, use_cache=False).logits
        kl, same = _compare(ours, theirs)
        counted = mask.roll(-1, dims=1)
        counted[:, -1] = False
        for row in range(len(part)):
            if bool(counted[row].any()):
                divergences.append(kl[row][counted[row]].double().mean())
                agreements.append(same[row][counted[row]].double().mean())
                document = {
                    "document": first + row,
                    "hash": content_hash(part[row][mask[row]].numpy().tobytes()),
                    "tokens": int(counted[row].sum()),
                }
                rows.append({"measure": "kl", **document, "value": float(divergences[-1])})
                rows.append({"measure": "top1", **document, "value": float(agreements[-1])})
        advance()
    divergence, agreed = torch.stack(divergences), torch.stack(agreements)
    root = math.sqrt(len(divergence))
    errors = [float(measure.std()) / root if len(measure) > 1 else 0.0 for measure in (divergence, agreed)]
    scores = {
        "kl": float(divergence.mean()),
        "kl.stderr": errors[0],
        "top1": float(agreed.mean()),
        "top1.stderr": errors[1],
    }
    return scores, rows


def _compare(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """KL(theirs || ours) of logits [batch, length, vocabulary] in nats, and whether the most likely tokens are the same
    (1 or 0): float32 [batch, length] each."""
    divergences, same = [], []
    for x, y in zip(ours.flatten(0, 1).split(ROWS), theirs.flatten(0, 1).split(ROWS), strict=True):
        log_q, log_p = torch.log_softmax(x.float(), dim=-1), torch.log_softmax(y.float(), dim=-1)
        same.append(log_q.argmax(dim=-1) == log_p.argmax(dim=-1))
        log_ratio = torch.sub(log_p, log_q)
        divergences.append(log_ratio.mul_(log_p.exp_()).sum(dim=-1))
    return torch.cat(divergences).view(ours.shape[:2]), torch.cat(same).float().view(ours.shape[:2])
