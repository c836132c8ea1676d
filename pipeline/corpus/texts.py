"""Text of others: read from .txt and JSON lines files, and packed into sequences of one length."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def json_lines(file: Path) -> list[str]:
    """The documents of a JSON lines file, whose rows have a `page` or a `text`.

    Raises:
        ValueError: a line is malformed; names file and line.
    """
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
    return pages


def documents(where: Path) -> list[str]:
    """The documents of a file, or of every .txt (one each) and .jsonl file of a folder, in the order of their paths.

    Raises:
        ValueError: there are none, or a file is malformed.
    """
    files = sorted(f for f in where.rglob("*") if f.suffix in (".txt", ".jsonl")) if where.is_dir() else [where]
    texts: list[str] = []
    for file in files:
        try:
            texts += json_lines(file) if file.suffix == ".jsonl" else [file.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}") from None
    if not any(text.strip() for text in texts):
        raise ValueError(
            f"targets.text: {where} holds no text; put .txt or .jsonl files there, or set targets.share to 0"
        )
    return texts


def pack(texts: Iterable[str], tokenizer: Any, length: int) -> tuple[Tensor, Tensor]:
    """Documents, an end-of-sequence token after each where there is one, joined and cut into sequences.

    Returns:
        tokens: int64 [sequences, length], the last one padded. lengths: int64 [sequences], the valid tokens of each. A
        rest of one token, which predicts nothing, is dropped.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
    if len(ids) % length == 1:
        ids.pop()
    rows = -(-len(ids) // length)
    tokens = torch.zeros(rows * length, dtype=torch.int64)
    tokens[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    lengths = torch.full((rows,), length)
    if rows:
        lengths[-1] = len(ids) - (rows - 1) * length
    return tokens.reshape(rows, length), lengths
