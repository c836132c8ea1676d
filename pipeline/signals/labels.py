"""What the loss under the signals takes for the next token: tokens that the float model has drawn itself.

Only of those is the gradient of the cross-entropy a score, whose square is Fisher information. Most of the corpus is
such tokens; what opens a conversation, greedy prefixes and start tokens are read, but not counted. A corpus without any
(greedy, or at another temperature) is read as it is, and labels for it are drawn here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.models import forward

SEED = 0


@dataclass(frozen=True)
class Text:
    """What the models read.

    tokens: int64 [sequences, length]. valid: bool of the same shape. batch: sequences a forward. labels: int64 of the
    same shape, what the loss takes for the next token at each position; None: tokens. counted: bool of the same shape,
    the labels that count in the loss; None: the valid ones.
    """

    tokens: Tensor
    valid: Tensor
    batch: int
    labels: Tensor | None = None
    counted: Tensor | None = None

    @property
    def predicted(self) -> int:
        """How many tokens are predicted, over which the loss is a mean."""
        return int(self._counted[:, 1:].sum())

    @property
    def _counted(self) -> Tensor:
        return self.valid if self.counted is None else self.counted

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Tokens, which are valid, labels, which count, batch by batch."""
        labels = self.tokens if self.labels is None else self.labels
        parts = (part.split(self.batch) for part in (self.tokens, self.valid, labels, self._counted))
        return zip(*parts, strict=True)


def text(teacher: PreTrainedModel, corpus: Corpus, sequences: int, batch: int) -> Text:
    """The first training sequences of a corpus, `batch` a forward, with the labels that count.

    Raises:
        ValueError: the corpus has fewer; or labels are to be drawn, and the logits are more than states times the head.
    """
    tokens, lengths = corpus.train(sequences)
    sampled = corpus.sampled(sequences)
    made = Text(tokens, valid_mask(lengths, tokens.shape[1]), batch, counted=sampled)
    return made if bool(sampled[:, 1:].any()) else drawn(teacher, replace(made, counted=None))


@torch.no_grad()
def drawn(teacher: PreTrainedModel, made: Text) -> Text:
    """The text with a label at each position that the float model draws after what stands before it."""
    head = forward.head_weight(teacher)
    generator = torch.Generator().manual_seed(SEED)
    labels = made.tokens.clone()
    for i, row in enumerate(made.tokens):
        logits = forward.hidden_states(teacher, row[None, :-1])[0] @ head.T  # (length - 1, vocabulary)
        labels[i, 1:] = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    return replace(made, labels=labels)
