"""analyze: how signals and gradients flow through the float and the quantized models, and what that suggests."""

from pathlib import Path
from typing import Any

from pipeline.artifacts import contract
from pipeline.knobs import params
from pipeline.losses.chunked import LossWeights
from pipeline.signals import plan_files, suggest
from pipeline.signals.look import look
from pipeline.signals.probe import Options
from stages import run


def work() -> None:
    args = run.begin("analyze", "teacher", "corpus", "out", repeated="variant")
    loaded = params.load()
    knobs = loaded.analyze
    options = Options(LossWeights(knobs.ce, knobs.kl), knobs.sensitivity_sequences, knobs.plan_bits)
    signals = look("analyze", args.teacher, args.corpus, args.variant, knobs, options)
    freeze = {name: suggest.freeze_policy(signals.table, name) for name in signals.names}
    with contract.writing(Path(args.out), contract.SIGNALS) as draft:
        signals.write(draft.path)
        suggestion: dict[str, Any] = {"freeze": freeze}
        if signals.curves:
            suggestion["bits"] = plan_files.write(signals.curves, knobs.average_bits, loaded.scheme, draft.path)
        contract.write_json(draft.path / "suggestion.json", suggestion)
        draft.facts = {
            "variants": signals.names,
            "tokens": signals.tokens,
            "suggested_freeze": freeze[signals.first]["policy"],
            "suggested_by": signals.first,
        }


if __name__ == "__main__":
    run.main("analyze", work)
