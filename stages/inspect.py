"""inspect: the student looked at as analyze, which comes before distill, looks at the calibrated models."""

from pathlib import Path

from pipeline.artifacts import contract, progress
from pipeline.corpus.artifact import Corpus
from pipeline.knobs import params
from pipeline.losses.chunked import LossWeights
from pipeline.models import saved
from pipeline.signals import labels, probe, suggest, table
from stages import run


def work() -> None:
    args = run.begin("inspect", "teacher", "corpus", "out", repeated="variant")
    loaded = params.load()
    knobs = loaded.analyze
    contract.reading(args.teacher, contract.TEACHER)
    variants = probe.variants(args.variant)
    corpus = Corpus.load(args.corpus)
    options = probe.Options(LossWeights(knobs.ce, knobs.kl), loaded.inspect.sensitivity_sequences)
    teacher = saved.load_model(args.teacher)
    text = labels.text(teacher, corpus, knobs.sequences, knobs.batch)
    with progress.bar("inspect", probe.steps(teacher, variants, text, options), "") as bar:
        found = probe.probe(teacher, lambda: saved.load_model(args.teacher), variants, text, options, bar.update)
    names = [table.FLOAT, *variants]
    with contract.writing(Path(args.out), contract.SIGNALS) as draft:
        table.write(found.table, names, draft.path)
        for name in names:
            claim = suggest.claim(found.table, name)
            claim.to_csv(draft.path / f"freeze_claim_{name}.csv", index=False, float_format="%.6g")
        draft.facts = {"variants": names, "tokens": int(text.valid.sum())}


if __name__ == "__main__":
    run.main("inspect", work)
