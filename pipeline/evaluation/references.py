"""What the teacher makes of the texts that every variant is compared on, computed once.

Kept are the tokens and what the teacher's head reads over them, not its logits, which are a hundred times as large: the
head makes them again, a few positions at a time (pipeline/models/head.py). A variant runs over the same batches as the
teacher did, so the teacher against itself differs in no bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from pipeline.artifacts import contract
from pipeline.models import head

REFERENCES = contract.Kind("references", 1, "references")
FILE = "references.safetensors"
HELD_OUT, LONG, DIALOGUE = TEXTS = ("held_out", "long", "dialogue")
FORWARD = 1024  # tokens of a batch of several documents


@dataclass(frozen=True)
class Document:
    """A text that is compared: of TEXTS, its number among these, its tokens, int64 [length], and of each token the
    answer of a dialogue that it belongs to, from 1, else 0: int64 [length]. Its tokens begin at `start` of all."""

    text: str
    number: int
    tokens: Tensor
    turns: Tensor
    start: int

    def counts(self) -> Tensor:
        """Which positions' next tokens are compared, all but of what was said to a model: bool [length]."""
        counted = torch.ones_like(self.tokens, dtype=torch.bool)
        if self.text == DIALOGUE:
            counted[:-1] = self.turns[1:] > 0
        counted[-1] = False
        return counted


@dataclass(frozen=True)
class References:
    """The documents, and what the teacher's head reads over all their tokens, [tokens, hidden]: a tensor, or a slice of
    a file that reads by row. facts: of the manifest."""

    documents: list[Document]
    states: Any
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        """Tokens of all documents."""
        return sum(len(document.tokens) for document in self.documents)

    def batches(self) -> Iterator[list[Document]]:
        """Documents that are read in one forward, in their order."""
        return batches(self.documents)

    def save(self, folder: str | Path) -> None:
        """Write the artifact."""
        with contract.writing(folder, REFERENCES) as draft:
            columns = {
                "tokens": torch.cat([document.tokens for document in self.documents]),
                "turn": torch.cat([document.turns for document in self.documents]),
                "position": torch.cat([torch.arange(len(document.tokens)) for document in self.documents]),
                "text": torch.tensor([TEXTS.index(document.text) for document in self.documents]),
                "length": torch.tensor([len(document.tokens) for document in self.documents]),
            }
            integers = {name: column.to(torch.int32).contiguous() for name, column in columns.items()}
            save_file({**integers, "states": self.states.contiguous()}, draft.path / FILE)
            draft.facts = self.facts

    @classmethod
    def load(cls, folder: str | Path) -> "References":
        """Read the artifact; the states stay in the file until they are asked for.

        Raises:
            ValueError: it is none, or was changed.
        """
        facts = contract.reading(folder, REFERENCES)
        stored = safe_open(Path(folder) / FILE, framework="pt")
        names = ("tokens", "turn", "text", "length")
        tokens, turns, texts, lengths = (stored.get_tensor(name).long() for name in names)
        parts = zip(texts.tolist(), tokens.split(lengths.tolist()), turns.split(lengths.tolist()), strict=True)
        return cls(documents((TEXTS[text], ids, turn) for text, ids, turn in parts), stored.get_slice("states"), facts)


def documents(parts: Any) -> list[Document]:
    """Of (text, tokens [length], turns [length] or None), numbered within each text."""
    numbered, counts, start = list[Document](), dict.fromkeys(TEXTS, 0), 0
    for text, tokens, turns in parts:
        of_token = torch.zeros_like(tokens) if turns is None else turns
        numbered.append(Document(text, counts[text], tokens, of_token, start))
        counts[text] += 1
        start += len(tokens)
    return numbered


def batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Documents of one text, in their order, as many as FORWARD tokens hold when they are padded to one length."""
    batch: list[Document] = []
    for document in documents:
        longest = max(len(other.tokens) for other in [*batch, document])
        if batch and (batch[0].text != document.text or (len(batch) + 1) * longest > FORWARD):
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def padded(batch: Sequence[Document]) -> Tensor:
    """The tokens of documents, [documents, length of the longest]; what stands behind a text changes nothing in it."""
    return pad_sequence([document.tokens for document in batch], batch_first=True)


@torch.inference_mode()
def record(
    teacher: PreTrainedModel, texts: Sequence[Document], facts: dict[str, Any], advance: Callable[[int], object]
) -> References:
    """Run the teacher over documents.

    Args:
        teacher: the float model, in eval mode. facts: for the manifest. advance: called with the number of tokens read,
            after each forward.

    Raises:
        ValueError: a state is not finite.
    """
    states = []
    for batch in batches(texts):
        read = head.reads(teacher, padded(batch))
        if not bool(read.isfinite().all()):
            raise ValueError(f"the teacher's states are not finite on {batch[0].text} text; is the teacher sound?")
        states += [rows[: len(document.tokens)] for rows, document in zip(read, batch, strict=True)]
        advance(sum(len(document.tokens) for document in batch))
    return References(list(texts), torch.cat(states), facts)
