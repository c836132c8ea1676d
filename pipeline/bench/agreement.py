"""Agreement with the teacher on held-out text of the teacher's own: KL divergence and top-1 agreement.

A perplexity under the float model's is no proof of fidelity; these two measure fidelity itself.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.bench.items import content_hash

BATCH = 2  # sequences whose logits, the model's and the teacher's, are held at once


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
        tokens: int64 [sequences, length]. valid: bool of the same shape; positions whose next token is valid count.
        advance: called after each batch.

    Returns:
        kl, top1 and the standard error of each over sequences; and the rows of each sequence for `items.documents`.
    """
    divergences, agreements, rows = [], [], []
    for first, part, mask in zip(range(0, len(tokens), BATCH), tokens.split(BATCH), valid.split(BATCH), strict=True):
        ours = torch.log_softmax(model(input_ids=part, use_cache=False).logits.float(), dim=-1)
        theirs = torch.log_softmax(teacher(input_ids=part, use_cache=False).logits.float(), dim=-1)
        kl = (theirs.exp() * (theirs - ours)).sum(dim=-1)  # (batch, length)
        same = (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float()
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
    errors = [float(each.std()) / root if len(each) > 1 else 0.0 for each in (divergence, agreed)]
    scores = {
        "kl": float(divergence.mean()),
        "kl.stderr": errors[0],
        "top1": float(agreed.mean()),
        "top1.stderr": errors[1],
    }
    return scores, rows
