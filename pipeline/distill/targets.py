"""What distillation learns from: token ids, and the teacher's last hidden states over them, recorded once.

The teacher's logits are its head times these states, so nothing else of it is run in training: not in a second epoch,
not for another freeze policy. They are kept in the dtype in which the loss reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.artifacts import contract
from pipeline.corpus.artifact import valid_mask
from pipeline.models import forward

FILE = "targets.safetensors"


@dataclass(frozen=True)
class Targets:
    """tokens: int64 [sequences, length]. lengths: int64 [sequences], valid tokens of each. hidden: [sequences, length,
    hidden], the teacher's last hidden states after its final norm; a tensor, or a slice of a file that reads by row."""

    tokens: Tensor
    lengths: Tensor
    hidden: Any

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [n, length], which of them are valid (bool), and the teacher's states [n, length, hidden]."""
        wanted = list(indices)
        states = torch.cat([self.hidden[i : i + 1] for i in wanted])
        return self.tokens[wanted], valid_mask(self.lengths[wanted], self.tokens.shape[1]), states

    def predicted(self, indices: Sequence[int]) -> int:
        """How many tokens these sequences predict."""
        return int((self.lengths[list(indices)] - 1).clamp(min=0).sum())

    def save(self, folder: str | Path, facts: dict[str, Any]) -> None:
        """Write the artifact."""
        with contract.writing(folder, contract.TARGETS) as draft:
            ids = {"tokens": self.tokens.int(), "lengths": self.lengths.int()}
            save_file({**ids, "hidden": self.hidden.contiguous()}, draft.path / FILE)
            draft.facts = {**facts, "sequences": len(self), "valid_tokens": int(self.lengths.sum())}

    @classmethod
    def load(cls, folder: str | Path) -> "Targets":
        """Read the artifact; the states stay in the file until they are asked for.

        Raises:
            ValueError: it is none, or was changed.
        """
        contract.reading(folder, contract.TARGETS)
        stored = safe_open(Path(folder) / FILE, framework="pt")
        tokens, lengths = (stored.get_tensor(name).long() for name in ("tokens", "lengths"))
        return cls(tokens, lengths, stored.get_slice("hidden"))


@torch.no_grad()
def record(
    teacher: PreTrainedModel, tokens: Tensor, lengths: Tensor, batch: int, dtype: str, advance: Callable[[int], object]
) -> Targets:
    """Run the teacher over sequences, `batch` at a time, and keep its last hidden states in `dtype`.

    Args:
        teacher: the float model. tokens: int64 [sequences, length]. lengths: of each.
        dtype: of the autocast, and of what is kept. advance: called with the number of tokens read, after each forward.

    Raises:
        ValueError: a state is not finite.
    """
    states: Tensor | None = None
    done = 0
    for part in tokens.split(batch):
        with forward.autocast(dtype, teacher.device):
            hidden = forward.hidden_states(teacher, part.to(teacher.device))
        if not bool(hidden.isfinite().all()):
            raise ValueError("the teacher's hidden states are not finite on the training text; is the teacher sound?")
        if states is None:
            states = torch.empty(*tokens.shape, hidden.shape[-1], dtype=forward.torch_dtype(dtype))
        states[done : done + len(part)] = hidden
        done += len(part)
        advance(part.numel())
    return Targets(tokens, lengths, states)


def mix(own: tuple[Tensor, Tensor], outside: tuple[Tensor, Tensor], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The teacher's own sequences and others', so that `share` of all are the others'; which of these, chance decides.

    Args:
        own, outside: tokens [sequences, length] and lengths. share: above 0, to 1: all of `outside`, none of `own`.

    Raises:
        ValueError: there are none of the others', or not enough for that share.
    """
    if not len(outside[0]):
        raise ValueError("targets.text makes no sequence of two tokens or more; put more text there")
    if share == 1:
        return outside
    wanted, there = round(len(own[0]) * share / (1 - share)), len(outside[0])
    if wanted > there:
        most = there / (there + len(own[0]))
        raise ValueError(
            f"targets.share {share} of the sequences asks for {wanted} beside {len(own[0])} of the teacher's own, but "
            f"the text makes {there}; add text, or lower targets.share to {most:.3f} or less"
        )
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:wanted]
    return torch.cat([own[0], outside[0][chosen]]), torch.cat([own[1], outside[1][chosen]])
