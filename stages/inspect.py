"""inspect: the student looked at as analyze, which comes before distill, looks at the calibrated models."""

from pathlib import Path

from pipeline.artifacts import contract
from pipeline.knobs import params
from pipeline.losses.chunked import LossWeights
from pipeline.signals.look import look
from pipeline.signals.probe import Options
from stages import run


def work() -> None:
    args = run.begin("inspect", "teacher", "corpus", "out", repeated="variant")
    loaded = params.load()
    knobs = loaded.analyze
    options = Options(LossWeights(knobs.ce, knobs.kl), loaded.inspect.sensitivity_sequences)
    signals = look("inspect", args.teacher, args.corpus, args.variant, knobs, options)
    with contract.writing(Path(args.out), contract.SIGNALS) as draft:
        signals.write(draft.path)
        draft.facts = {"variants": signals.names, "tokens": signals.tokens}


if __name__ == "__main__":
    run.main("inspect", work)
