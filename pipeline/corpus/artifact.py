"""The synthetic corpus: token ids as the teacher wrote them, never decoded and encoded again."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifacts import contract

FILE = "corpus.safetensors"


@dataclass(frozen=True)
class Corpus:
    """Generated sequences; the last `held_out` of them are for the scores only.

    tokens: int64 [sequences, length], start token first. lengths: int64 [sequences], valid tokens of each.
    prefix: int64 [sequences], greedy tokens after the start token. sampled_from: int64 [sequences], where the first
    token stands that was drawn from the teacher's own distribution, as all behind it were; the length where none was.
    """

    tokens: Tensor
    lengths: Tensor
    prefix: Tensor
    sampled_from: Tensor
    held_out: int

    def save(self, folder: str | Path, facts: dict) -> None:
        """Write the artifact: int32 ids, and a manifest with the shape, the split and `facts`."""
        with contract.writing(folder, contract.CORPUS) as draft:
            columns = {"tokens": self.tokens, "lengths": self.lengths, "prefix": self.prefix}
            columns["sampled_from"] = self.sampled_from
            save_file({k: v.to(torch.int32).contiguous() for k, v in columns.items()}, draft.path / FILE)
            sequences, length = self.tokens.shape
            draft.facts = {**facts, "sequences": sequences, "length": length, "held_out": self.held_out}

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Read the artifact.

        Raises:
            ValueError: it is not a corpus, or was changed.
        """
        facts = contract.reading(folder, contract.CORPUS)
        columns = {name: column.long() for name, column in load_file(Path(folder) / FILE).items()}
        return cls(**columns, held_out=facts["held_out"])

    def train(self, sequences: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and lengths of the training split, or of its first `sequences`.

        Raises:
            ValueError: more are asked for than there are.
        """
        available = len(self.tokens) - self.held_out
        wanted = available if sequences is None else sequences
        if wanted > available:
            raise ValueError(
                f"{wanted} sequences are asked for, but the corpus has {available} for training "
                f"({len(self.tokens)} less {self.held_out} held out); raise synthesize.sequences or ask for fewer"
            )
        return self.tokens[:wanted], self.lengths[:wanted]

    def sampled(self, sequences: int | None = None) -> Tensor:
        """Which tokens of the training split, or of its first `sequences`, are valid samples of the teacher: bool.

        Raises:
            ValueError: as `train`.
        """
        tokens, lengths = self.train(sequences)
        length = tokens.shape[1]
        return valid_mask(lengths, length) & ~valid_mask(self.sampled_from[: len(tokens)], length)

    def test(self) -> tuple[Tensor, Tensor]:
        """Tokens and lengths of the held-out split."""
        first = len(self.tokens) - self.held_out
        return self.tokens[first:], self.lengths[first:]


def valid_mask(lengths: Tensor, length: int) -> Tensor:
    """Which positions hold a token of the text: bool [sequences, length]."""
    return torch.arange(length)[None, :] < lengths[:, None]
