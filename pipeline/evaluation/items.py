"""Scores item by item and document by document, so that two versions can be compared in pairs.

Layout: answers.parquet, a row an item of a task; documents.parquet, a row a document and measure. Both name an item by
its place and by a hash of its content: two versions were asked the same where both agree.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
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
HASH = 16  # hexadecimal digits of a sha256


@dataclass(frozen=True)
class Items:
    """What a variant answered (columns ANSWERS) and measured (columns DOCUMENTS)."""

    answers: pd.DataFrame
    documents: pd.DataFrame

    def save(self, folder: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Write the artifact, whole or not at all, with facts of how it was scored."""
        with contract.writing(folder, ITEMS) as draft:
            self.answers.to_parquet(draft.path / "answers.parquet", index=False)
            self.documents.to_parquet(draft.path / "documents.parquet", index=False)
            draft.facts |= facts or {}
            draft.facts["answers"], draft.facts["documents"] = len(self.answers), len(self.documents)

    @classmethod
    def load(cls, folder: str | Path) -> "Items":
        """Read it back, checked.

        Raises:
            ValueError: it is no such artifact, or not as it was written.
        """
        contract.reading(folder, ITEMS)
        return cls(*(pd.read_parquet(Path(folder) / f"{name}.parquet") for name in ("answers", "documents")))


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


def content_hash(content: bytes) -> str:
    """By what a document's content is known."""
    return hashlib.sha256(content).hexdigest()[:HASH]
