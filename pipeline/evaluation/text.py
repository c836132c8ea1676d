"""Perplexity on a text that the teacher did not write.

Protocol: the documents joined by blank lines, encoded once without special tokens, cut into windows of a fixed length
from the start; each window stands alone, its first token is context only. No BOS is added.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.corpus.texts import json_lines
from pipeline.evaluation.items import content_hash
from pipeline.models import head

PYDOC = "pydoc"


def read_text(name: str, folder: str | Path) -> str:
    """The text to score: CPython's own help topics, or a JSON lines file whose rows have a `page` or a `text`.

    Raises:
        ValueError: the file is missing or a line of it is malformed; names file and line.
    """
    if name == PYDOC:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[topic] for topic in sorted(topics))
    file = Path(folder) / f"{name}.jsonl"
    if not file.is_file():
        raise ValueError(
            f"evaluate.text: {file} does not exist; give the name of a JSON lines file there, or {PYDOC!r}"
        )
    return "\n\n".join(json_lines(file))


def windows(text: str, tokenizer: Any, count: int, length: int) -> Tensor:
    """The first `count` windows of the text: int64 [count, length].

    Raises:
        ValueError: the text is too short.
    """
    return beginning(text, tokenizer, count * length, "evaluate.windows x evaluate.window").reshape(count, length)


def beginning(text: str, tokenizer: Any, wanted: int, knobs: str) -> Tensor:
    """The first tokens of the text: int64 [wanted].

    Raises:
        ValueError: the text is too short; names the knobs that ask for so many.
    """
    ids = tokenizer(text[: wanted * 16], add_special_tokens=False, verbose=False)["input_ids"][:wanted]
    if len(ids) < wanted:
        raise ValueError(f"{knobs} asks for {wanted} tokens, the text has {len(ids)}; lower it")
    return torch.tensor(ids)


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, tokens: Tensor, advance: Callable[[], object]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Perplexity over windows [count, length], its standard error (delta method over windows), and its logarithm's.

    Logits are cast to float32 before the softmax.

    Returns:
        the scores, and the logarithm's row of each window for `items.documents`.
    """
    logits, losses = head.of(model), []
    for window in tokens:
        states = head.reads(model, window[None])[0, :-1]
        parts = zip(head.in_chunks(logits, states), window[1:].split(head.CHUNK), strict=True)
        of_tokens = [cross_entropy(part.float(), said, reduction="none") for part, said in parts]
        losses.append(torch.cat(of_tokens).double().mean())
        advance()
    window_losses = torch.stack(losses)
    mean, error = float(window_losses.mean()), float(window_losses.std() / math.sqrt(len(window_losses)))
    scores = {"perplexity": math.exp(mean), "perplexity.stderr": math.exp(mean) * error, "log_perplexity": mean}
    rows = [
        {
            "measure": "log_perplexity",
            "document": i,
            "hash": content_hash(window.numpy().tobytes()),
            "tokens": len(window) - 1,
            "value": loss,
        }
        for i, (window, loss) in enumerate(zip(tokens, window_losses.tolist(), strict=True))
    ]
    return scores, rows


def text_sha256(text: str) -> str:
    """sha256 of the text's UTF-8: which text a perplexity was measured on."""
    return hashlib.sha256(text.encode()).hexdigest()
