"""A look at the float model and at models quantized from it: what the stages analyze and inspect have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.artifacts import contract, progress
from pipeline.corpus.artifact import Corpus
from pipeline.knobs.sections import Analyze
from pipeline.models import saved
from pipeline.signals import labels, plan, probe, suggest, table


@dataclass(frozen=True)
class Look:
    """names: of the float model and the variants, in order. table: see table.py. curves: predicted losses of the
    linears of the first variant. tokens: how many were looked at."""

    names: list[str]
    table: pd.DataFrame
    curves: list[plan.Curve]
    tokens: int

    @property
    def first(self) -> str:
        """The first variant; the float model where there is none."""
        return self.names[1] if len(self.names) > 1 else self.names[0]

    def write(self, folder: Path) -> None:
        """Write the table, its curves, and what each model shows of the freezing paper's claim."""
        table.write(self.table, self.names, folder)
        for name in self.names:
            table.write_csv(suggest.claim(self.table, name), folder / f"freeze_claim_{name}.csv")


def look(
    stage: str, teacher: str, corpus: str, variants: Sequence[str], knobs: Analyze, options: probe.Options
) -> Look:
    """Look at a teacher and its variants on text of the corpus, under a progress bar of the stage's name.

    Args:
        teacher, corpus: folders. variants: `name=folder` each, as `calibrate` or `distill` makes them.

    Raises:
        ValueError: a folder is not what it should be, or the variants are not written so.
    """
    contract.reading(teacher, contract.TEACHER)
    known, written = probe.variants(variants), Corpus.load(corpus)
    model = saved.load_model(teacher)
    text = labels.text(model, written, knobs.sequences, knobs.batch)
    with progress.bar(stage, probe.steps(model, known, text, options), "") as bar:
        signals = probe.probe(model, lambda: saved.load_model(teacher), known, text, options, bar.update)
    return Look([table.FLOAT, *known], signals.table, signals.curves, int(text.valid.sum()))
