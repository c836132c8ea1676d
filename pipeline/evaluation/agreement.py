"""Agreement with the teacher, token by token: KL divergence, and whether the most likely next token is the same.

A perplexity under the float model's is no proof of fidelity; these two measure fidelity itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.evaluation.items import TOKENS, content_hash
from pipeline.evaluation.references import HELD_OUT, References, padded
from pipeline.models import head

ROWS = 16  # positions whose distributions are: few, so that on a CPU these stay in its caches


@torch.inference_mode()
def agreement(
    model: PreTrainedModel, teacher: head.Head, references: References, advance: Callable[[int], object]
) -> pd.DataFrame:
    """KL(teacher || model) in nats, and whether the most likely token is the same, of each next token that counts.

    Args:
        teacher: the float model's head. references: what it reads.
        advance: called with the number of tokens read, after each forward of the model.

    Returns:
        a row a token, in the order of the documents: columns as `items.TOKENS`; the position is the token's own, so
        how many stand before it.
    """
    ours, rows = head.of(model), []
    for batch in references.batches():
        read = head.reads(model, padded(batch))
        for document, states in zip(batch, read, strict=True):
            at = document.counts().nonzero()[:, 0]
            if not len(at):
                continue
            theirs = references.states[document.start : document.start + len(document.tokens)]
            kl, same = _compare(ours, teacher, states[at], theirs[at])
            values = {"position": at + 1, "turn": document.turns[at + 1], "kl": kl, "same": same}
            columns = {name: column.numpy() for name, column in values.items()}
            rows.append(pd.DataFrame({"text": document.text, "document": document.number, **columns}))
        advance(sum(len(document.tokens) for document in batch))
    return pd.concat(rows, ignore_index=True).astype(TOKENS)


def _compare(ours: head.Head, theirs: head.Head, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of what two heads read, [positions, hidden]: KL(theirs || ours) in nats, float32 [positions], and whether the
    most likely tokens are the same, bool [positions]."""
    divergences, same = [], []
    for our_logits, their_logits in zip(head.in_chunks(ours, x), head.in_chunks(theirs, y), strict=True):
        for q, p in zip(our_logits.split(ROWS), their_logits.split(ROWS), strict=True):
            log_q, log_p = torch.log_softmax(q.float(), dim=-1), torch.log_softmax(p.float(), dim=-1)
            same.append(log_q.argmax(dim=-1) == log_p.argmax(dim=-1))
            log_ratio = torch.sub(log_p, log_q)
            divergences.append(log_ratio.mul_(log_p.exp_()).sum(dim=-1))
    return torch.cat(divergences), torch.cat(same)


def by_document(tokens: pd.DataFrame, references: References) -> list[dict[str, Any]]:
    """The rows for `items.documents`: of each held-out sequence the mean KL, and the share of same tokens.

    Args:
        tokens: as `agreement` returns them.
    """
    held_out = tokens[tokens["text"] == HELD_OUT]
    means = {number: held_out.loc[rows] for number, rows in held_out.groupby("document").groups.items()}
    rows = []
    for document in references.documents:
        part = means.get(document.number) if document.text == HELD_OUT else None
        if part is None:
            continue
        about = {
            "document": document.number,
            "hash": content_hash(document.tokens.numpy().tobytes()),
            "tokens": len(part),
        }
        kl, same = part["kl"].to_numpy(np.float64), part["same"].to_numpy(np.float64)
        rows.append({"measure": "kl", **about, "value": float(kl.mean())})
        rows.append({"measure": "top1", **about, "value": float(same.mean())})
    return rows
