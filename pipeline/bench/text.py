"""Perplexity on a text that the teacher did not write.

Protocol: the documents joined by blank lines, encoded once without special tokens, cut into windows of a fixed length
from the start; each window stands alone, its first token is context only. No BOS is added.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
    pages = []
    for number, line in enumerate(file.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            page = row["page"] if "page" in row else row["text"]
            if not isinstance(page, str):
                raise TypeError(f"its text is {page!r}")
            pages.append(page)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: expected an object with a 'page' or a 'text': {error!r}"
            ) from None
    return "\n\n".join(pages)


def windows(text: str, tokenizer: Any, count: int, length: int) -> Tensor:
    """The first `count` windows of the text: int64 [count, length].

    Raises:
        ValueError: the text is too short.
    """
    wanted = count * length
    ids = tokenizer(text[: wanted * 16], add_special_tokens=False, verbose=False)["input_ids"][:wanted]
    if len(ids) < wanted:
        raise ValueError(
            f"evaluate.windows x evaluate.window asks for {wanted} tokens, the text has {len(ids)}; lower one of them"
        )
    return torch.tensor(ids).reshape(count, length)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokens: Tensor, advance: Callable[[], object]) -> dict[str, float]:
    """Perplexity over windows [count, length], its standard error (delta method over windows), and its logarithm's.

    Logits are cast to float32 before the softmax.
    """
    losses = []
    for window in tokens:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).double())
        advance()
    each = torch.stack(losses)
    mean, error = float(each.mean()), float(each.std() / math.sqrt(len(each)))
    return {"perplexity": math.exp(mean), "perplexity.stderr": math.exp(mean) * error, "log_perplexity": mean}


def text_sha256(text: str) -> str:
    """sha256 of the text's UTF-8: which text a perplexity was measured on."""
    return hashlib.sha256(text.encode()).hexdigest()
