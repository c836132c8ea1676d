"""inspect: the student looked at as analyze, which comes before distill, looks at the calibrated models."""

from pathlib import Path

from pipeline import artifacts, models, params, progress
from pipeline.corpus import Corpus
from pipeline.distill.losses import LossWeights
from pipeline.signals import labels, probe, suggest, table
from stages import run


def work() -> None:
    args = run.begin("inspect", "teacher", "corpus", "out", repeated="variant")
    loaded = params.load()
    knobs = loaded.analyze
    artifacts.reading(args.teacher, artifacts.TEACHER)
    variants = probe.variants(args.variant)
    corpus = Corpus.load(args.corpus)
    options = probe.Options(LossWeights(knobs.ce, knobs.kl), loaded.inspect.sensitivity_sequences)
    teacher = models.load_model(args.teacher)
    text = labels.text(teacher, corpus, knobs.sequences, knobs.batch)
    with progress.bar("inspect", probe.steps(teacher, variants, text, options), "") as bar:
        found = probe.probe(teacher, lambda: models.load_model(args.teacher), variants, text, options, bar.update)
    names = [table.FLOAT, *variants]
    with artifacts.writing(Path(args.out), artifacts.SIGNALS) as draft:
        table.write(found.table, names, draft.path)
        for name in names:
            claim = suggest.claim(found.table, name)
            claim.to_csv(draft.path / f"freeze_claim_{name}.csv", index=False, float_format="%.6g")
        draft.facts = {"variants": names, "tokens": int(text.valid.sum())}


if __name__ == "__main__":
    run.main("inspect", work)
