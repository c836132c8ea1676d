"""analyze: how signals and gradients flow through the float and the quantized models, and what that suggests."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline.artifacts import contract, progress
from pipeline.corpus.artifact import Corpus
from pipeline.knobs import params
from pipeline.knobs.scheme import Scheme
from pipeline.losses.chunked import LossWeights
from pipeline.models import saved
from pipeline.signals import labels, plan, probe, suggest, table
from stages import run

PLAN = "# The mixed-precision plan that analyze suggests, whole: paste it into params.yaml in the place of scheme.\n"


def work() -> None:
    args = run.begin("analyze", "teacher", "corpus", "out", repeated="variant")
    loaded = params.load()
    knobs = loaded.analyze
    contract.reading(args.teacher, contract.TEACHER)
    variants = probe.variants(args.variant)
    corpus = Corpus.load(args.corpus)
    options = probe.Options(LossWeights(knobs.ce, knobs.kl), knobs.sensitivity_sequences, knobs.plan_bits)
    teacher = saved.load_model(args.teacher)
    text = labels.text(teacher, corpus, knobs.sequences, knobs.batch)
    with progress.bar("analyze", probe.steps(teacher, variants, text, options), "") as bar:
        found = probe.probe(teacher, lambda: saved.load_model(args.teacher), variants, text, options, bar.update)
    names = [table.FLOAT, *variants]
    freeze = {name: suggest.freeze_policy(found.table, name) for name in names}
    first = next(iter(variants), table.FLOAT)
    with contract.writing(Path(args.out), contract.SIGNALS) as draft:
        table.write(found.table, names, draft.path)
        for name in names:
            _csv(suggest.claim(found.table, name), draft.path / f"freeze_claim_{name}.csv")
        suggestion: dict[str, Any] = {"freeze": freeze}
        if found.curves:
            suggestion["bits"] = _write_plan(found.curves, knobs.average_bits, loaded.scheme, draft.path)
        contract.write_json(draft.path / "suggestion.json", suggestion)
        draft.facts = {
            "variants": names,
            "tokens": int(text.valid.sum()),
            "suggested_freeze": freeze[first]["policy"],
            "suggested_by": first,
        }


def _write_plan(curves: list[plan.Curve], average: float, scheme: Scheme, folder: Path) -> dict[str, Any]:
    """Write plan.yaml, plan.csv, plan_bits.csv and plan_curve.csv; returns what suggestion.json says of them."""
    chosen = plan.choose(curves, average)
    written = {"scheme": plan.as_scheme(scheme, curves, chosen)}
    contract.write_text(
        folder / "plan.yaml",
        PLAN + yaml.safe_dump(written, sort_keys=False, default_flow_style=None, width=120),
    )
    linears = [(c.name, c.layer, c.role, c.size, chosen[c.name], c.losses[chosen[c.name]]) for c in curves]
    listed = pd.DataFrame(linears, columns=["name", "layer", "role", "weights", "bits", "kl"])
    _csv(listed, folder / "plan.csv")
    wide = listed.pivot_table(index="layer", columns="role", values="bits", aggfunc="mean", sort=False)
    _csv(wide.reset_index(), folder / "plan_bits.csv")
    widths = sorted(curves[0].losses)
    uniform = {bits: plan.predicted(curves, {c.name: bits for c in curves}) for bits in widths}
    mixed = {bits: plan.predicted(curves, plan.choose(curves, bits)) for bits in widths}
    lines = {"bits": widths, "uniform": [*uniform.values()], "plan": [*mixed.values()]}
    _csv(pd.DataFrame(lines), folder / "plan_curve.csv")
    return {
        "asked_average": average,
        "average": plan.average_bits(curves, chosen),
        "predicted_kl": plan.predicted(curves, chosen),
        "predicted_kl_uniform": {str(bits): value for bits, value in uniform.items()},
        "predicted_kl_plan": {str(bits): value for bits, value in mixed.items()},
    }


def _csv(wide: pd.DataFrame, file: Path) -> None:
    wide.to_csv(file, index=False, float_format="%.6g")


if __name__ == "__main__":
    run.main("analyze", work)
