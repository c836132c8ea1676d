"""Scores item by item and document by document, so that two versions can be compared in pairs.

Layout: answers.parquet, a row an item of a task; documents.parquet, a row a document and measure; tokens.parquet,
a row a token that was compared with the teacher's; written.parquet, a row an answer that the variant wrote. Items are
named by their place and by a hash of their content: two versions were asked the same where both agree.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artifacts import contract

ITEMS = contract.Kind("items", 2, "evaluate")
ANSWERS = {
    "task": "str",
    "item": "int64",
    "hash": "str",
    "prediction": "int64",  # the chosen answer's index; -1: none of them, where there is one alone
    "correct": "bool",  # by the task's headline metric
    "log_likelihoods": "object",  # of each answer: float64, nats
    "group": "str",
    "part": "str",  # of the group
    "cluster": "int64",  # items of a task with one number come as one; else the item itself
    "level": "str",  # how hard it is, or of which kind; often empty
    "answer": "int64",  # the right one's index; -1: there is none, or it is not known
    "probabilities": "object",  # of each answer: float64; softmax as the metric ranks them; of one alone, its own
    "right_probability": "float64",  # of the right one; nan: not known
}
DOCUMENTS = {
    "measure": "str",  # log_perplexity, kl: nats a token; top1: share of tokens
    "document": "int64",
    "hash": "str",
    "tokens": "int64",  # that count
    "value": "float64",  # their mean
}
TOKENS = {
    "text": "str",  # held_out, long, dialogue
    "document": "int32",  # its number among those of the text
    "position": "int32",  # of the token, so how many stand before it
    "turn": "int8",  # the answer of a dialogue that it belongs to, from 1; else 0
    "kl": "float32",  # from the teacher's distribution of it to the variant's, nats
    "same": "bool",  # whether both have the same most likely one
}
WRITTEN = {
    "item": "int64",  # of the instructions
    "hash": "str",
    "text": "str",  # the answer
    "tokens": "int64",  # of it, without the one that ends it
    "repetition": "float64",  # share of its 4-grams that stood in it before
    "ended": "bool",  # before the limit
}
TABLES = ("answers", "documents", "tokens", "written")
HASH = 16  # hexadecimal digits of a sha256


@dataclass(frozen=True)
class Items:
    """What a variant answered (columns ANSWERS), measured (DOCUMENTS; TOKENS, one by one) and wrote (WRITTEN)."""

    answers: pd.DataFrame
    documents: pd.DataFrame
    tokens: pd.DataFrame = field(default_factory=lambda: tokens([]))
    written: pd.DataFrame = field(default_factory=lambda: written([]))

    def save(self, folder: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Write the artifact, whole or not at all, with facts of how it was scored."""
        with contract.writing(folder, ITEMS) as draft:
            self.answers.to_parquet(draft.path / "answers.parquet", index=False)
            self.documents.to_parquet(draft.path / "documents.parquet", index=False)
            self.tokens.to_parquet(draft.path / "tokens.parquet", index=False)
            self.written.to_parquet(draft.path / "written.parquet", index=False)
            draft.facts |= facts or {}
            draft.facts["answers"], draft.facts["documents"] = len(self.answers), len(self.documents)

    @classmethod
    def load(cls, folder: str | Path) -> "Items":
        """Read it back, checked.

        Raises:
            ValueError: it is no such artifact, or not as it was written.
        """
        contract.reading(folder, ITEMS)
        return cls(*(pd.read_parquet(Path(folder) / f"{name}.parquet") for name in TABLES))


def answers(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of a list of answers, in the order of task and item.

    An item whose row does not say more stands alone, and which answer is right is not known.
    """
    alone = {"group": "", "part": "", "level": "", "answer": -1, "probabilities": (), "right_probability": math.nan}
    whole = [{**alone, "cluster": row["item"], **row} for row in rows]
    table = pd.DataFrame(whole, columns=list(ANSWERS)).astype(ANSWERS)
    return table.sort_values(["task", "item"], ignore_index=True)


def documents(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of a list of measures of documents, in their order."""
    return pd.DataFrame(list(rows), columns=list(DOCUMENTS)).astype(DOCUMENTS)


def tokens(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of a list of compared tokens, in their order."""
    return pd.DataFrame(list(rows), columns=list(TOKENS)).astype(TOKENS)


def written(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of a list of answers in writing, in their order."""
    return pd.DataFrame(list(rows), columns=list(WRITTEN)).astype(WRITTEN)


def content_hash(content: bytes) -> str:
    """By what a document's content is known."""
    return hashlib.sha256(content).hexdigest()[:HASH]
