"""How far models are from their teacher on a corpus's held-out text: KL and top-1 agreement, as `evaluate` has them.

What the teacher makes of the text is recorded once; then any number of models are held against it.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from pipeline.corpus.artifact import Corpus
from pipeline.evaluation import detail, references
from pipeline.evaluation.agreement import agreement
from pipeline.evaluation.references import HELD_OUT, References
from pipeline.models import head


@dataclass(frozen=True)
class HeldOut:
    """A teacher's head, and what it reads over the held-out text."""

    teacher: head.Head
    references: References

    @classmethod
    def of(cls, teacher: PreTrainedModel, corpus: str | Path, sequences: int | None = None) -> "HeldOut":
        """Run the teacher over the text.

        Args:
            teacher: in eval mode, in whichever float type. corpus: its folder. sequences: the first so many of those
                held out; None: all.

        Raises:
            ValueError: it is not a corpus, or the teacher is not sound.
        """
        tokens, lengths = (column[:sequences] for column in Corpus.load(corpus).test())
        rows = zip(tokens, lengths.tolist(), strict=True)
        texts = references.documents((HELD_OUT, row[:length], None) for row, length in rows)
        return cls(head.of(teacher), references.record(teacher, texts, {}, lambda n: None))

    def scores(self, model: PreTrainedModel) -> dict[str, float]:
        """Of a model with the teacher's vocabulary, as `detail.scores` has them: kl (nats a token), top1, and more."""
        return detail.scores(agreement(model, self.teacher, self.references, lambda n: None))
