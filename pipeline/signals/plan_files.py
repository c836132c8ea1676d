"""The mixed-precision plan as files: to paste into params.yaml, and to draw."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline.artifacts import contract
from pipeline.knobs.scheme import Scheme
from pipeline.signals import plan, table

PASTE = "# The mixed-precision plan that analyze suggests, whole: paste it into params.yaml in the place of scheme.\n"


def write(curves: list[plan.Curve], average: float, scheme: Scheme, folder: Path) -> dict[str, Any]:
    """Write plan.yaml, plan.csv, plan_bits.csv and plan_curve.csv.

    Args:
        curves: predicted losses of each linear. average: bits a quantized weight. scheme: what the plan changes.

    Returns:
        What suggestion.json says of them.
    """
    chosen = plan.choose(curves, average)
    written = {"scheme": plan.as_scheme(scheme, curves, chosen)}
    contract.write_text(
        folder / "plan.yaml",
        PASTE + yaml.safe_dump(written, sort_keys=False, default_flow_style=None, width=120),
    )
    linears = [(c.name, c.layer, c.role, c.size, chosen[c.name], c.losses[chosen[c.name]]) for c in curves]
    listed = pd.DataFrame(linears, columns=["name", "layer", "role", "weights", "bits", "kl"])
    table.write_csv(listed, folder / "plan.csv")
    wide = listed.pivot_table(index="layer", columns="role", values="bits", aggfunc="mean", sort=False)
    table.write_csv(wide.reset_index(), folder / "plan_bits.csv")
    widths = sorted(curves[0].losses)
    uniform = {bits: plan.predicted(curves, {c.name: bits for c in curves}) for bits in widths}
    mixed = {bits: plan.predicted(curves, plan.choose(curves, bits)) for bits in widths}
    lines = {"bits": widths, "uniform": [*uniform.values()], "plan": [*mixed.values()]}
    table.write_csv(pd.DataFrame(lines), folder / "plan_curve.csv")
    return {
        "asked_average": average,
        "average": plan.average_bits(curves, chosen),
        "predicted_kl": plan.predicted(curves, chosen),
        "predicted_kl_uniform": {str(bits): value for bits, value in uniform.items()},
        "predicted_kl_plan": {str(bits): value for bits, value in mixed.items()},
    }
