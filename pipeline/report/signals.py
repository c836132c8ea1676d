"""The report's section on signals: what it says, shows and tabulates of the tidy table and of what that suggests."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artifacts import contract
from pipeline.report import plots, shapes
from pipeline.signals import suggest
from pipeline.signals.table import FLOAT, SHAPES, by_layer, layers

FLOW = (  # caption, axis, tensor, statistic
    ("Gradient norm of each weight (squared Frobenius).", "||dL/dW||²", "weight", "gradient_norm_sq"),
    ("Gradient norm of each output (squared Frobenius).", "||dL/d(output)||²", "output", "gradient_norm_sq"),
    ("Forward signal: mean square of each output.", "mean square", "output", "mean_square"),
    ("Forward signal: mean absolute output.", "mean |output|", "output", "mean_abs"),
)
COMPARED = (
    ("SQNR of each output against the float model's.", "dB", "output", "sqnr_db"),
    ("SQNR of each weight against the float model's.", "dB", "weight", "sqnr_db"),
    ("Cosine of each weight's gradient with the float model's.", "cosine", "weight", "gradient_cosine"),
)
DISTRIBUTIONS = {
    "kurtosis": "Kurtosis (the plain fourth moment: 3 for a Gaussian)",
    "std": "Standard deviation",
    "absmax": "Largest absolute value",
    "outliers": "Share of values more than 6 standard deviations from the mean",
}
PANELS = {"weight": "weights", "input": "inputs of the linears", "cache": "keys and values"}


def section(folder: Path, table: pd.DataFrame, variants: list[str], used: object) -> dict[str, Any]:
    """What page.html shows under Signals.

    Args:
        folder: of analyze's artifact. table: of all variants, the student's among them. used: the freeze policy that
            was used.
    """
    suggestion = contract.read_json(folder / "suggestion.json")
    suggested_by = contract.reading(folder, contract.SIGNALS)["suggested_by"]
    freeze = {variant: suggest.freeze_policy(table, variant) for variant in variants}
    claims = {variant: suggest.claim(table, variant) for variant in variants}
    costs = {variant: layers(table, variant) for variant in variants if variant != FLOAT}
    return {
        "freeze_text": freeze_text(freeze[suggested_by], used),
        "claim": claim_rows(freeze),
        "claim_plot": "" if any(ratios.empty for ratios in claims.values()) else plots.claim(claims),
        "flow": _flow(table, variants),
        "distributions": _distributions(table),
        "cost_text": cost_text(costs),
        "cost_plot": plots.sensitivity(costs) if costs else "",
        "shapes_plot": shapes.picture(table, costs),
        "shapes_note": shapes.note(table, costs),
        "plan": _plan(folder, suggestion["bits"]) if "bits" in suggestion else None,
    }


def freeze_text(suggestion: dict[str, Any], used: object) -> str:
    """What the gradients of a variant say of the paper's claim, and the policy that they suggest."""
    end = f"Suggested policy: {suggestion['policy']}; used here: {used}."
    if "evidence" not in suggestion:
        return f"The claim cannot be looked at here, as {suggestion['reason']}. {end}"
    count, holds = suggestion["layers"], suggestion["layers_where_the_claim_holds"]
    parts = [
        f"{role}'s gradient norm is {n['median_ratio_to_qk']:.2f} times that of q and k (their geometric mean) in the "
        f"median layer, and above both in {n['layers_above_q_and_k']} of {count} layers"
        for role, n in suggestion["evidence"].items()
    ]
    return (
        f"The claim of \"Oh! We Freeze\" (2403.18159): o's and v's gradient norms lie above q's and k's. In "
        f"{suggestion['variant']} it holds for both at once in {holds} of {count} layers: {'; '.join(parts)}. A role "
        f"is suggested for freezing from {suggest.RATIO:g} times on in the median layer, if it is above 1 in at least "
        f"{100 * suggest.SHARE:.0f} % of the layers. {end}"
    )


def claim_rows(freeze: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The claim as a table, a header first and a row a variant."""
    header = ["", "o : q, k", "o above both", "v : q, k", "v above both", "o and v above both", "suggested"]
    rows = [header]
    for variant, suggestion in freeze.items():
        cells = ["-"] * 5
        if "evidence" in suggestion:
            of = f"of {suggestion['layers']}"
            cells = [
                text
                for numbers in suggestion["evidence"].values()
                for text in (f"{numbers['median_ratio_to_qk']:.2f}", f"{numbers['layers_above_q_and_k']} {of}")
            ]
            cells.append(f"{suggestion['layers_where_the_claim_holds']} {of}")
        rows.append([variant, *cells, suggestion["policy"]])
    return rows


def cost_text(costs: dict[str, pd.DataFrame]) -> str:
    """Which layers are the dearest to quantize, and how well the prediction ranks them."""
    said = []
    for variant, layer_costs in costs.items():
        if "one_layer_kl" not in layer_costs:
            continue
        top = layer_costs.nlargest(min(3, len(layer_costs)), "one_layer_kl")
        dearest = ", ".join(f"{layer} ({kl:.4f})" for layer, kl in zip(top["layer"], top["one_layer_kl"], strict=True))
        rank = layer_costs["one_layer_kl"].rank().corr(layer_costs["first_order_kl"].rank())
        order = f"; rank correlation with the prediction {rank:.2f}" if rank == rank else ""
        said.append(f"{variant}: dearest layers {dearest}, all {layer_costs['one_layer_kl'].sum():.3f} in sum{order}")
    return ". ".join(said) + "." if said else "Not measured (sensitivity_sequences is 0)."


def _flow(table: pd.DataFrame, variants: list[str]) -> list[tuple[str, str]]:
    pictures = [
        (caption, plots.by_layer({v: by_layer(table, v, tensor, statistic) for v in variants}, label))
        for caption, label, tensor, statistic in FLOW
    ]
    others = [v for v in variants if v != FLOAT]
    if others:
        pictures += [
            (caption, plots.by_layer({v: by_layer(table, v, tensor, statistic) for v in others}, label, log=False))
            for caption, label, tensor, statistic in COMPARED
        ]
    return pictures


def _distributions(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Of the float model, a picture a statistic; a panel for each kind of tensor that there is."""
    pictures = []
    for statistic in SHAPES:
        tables = {title: by_layer(table, FLOAT, tensor, statistic) for tensor, title in PANELS.items()}
        shown = {title: wide for title, wide in tables.items() if len(wide)}
        caption = f"{DISTRIBUTIONS[statistic]}, float model."
        pictures.append((caption, plots.by_layer(shown, statistic, log=statistic != "outliers", common=False)))
    return pictures


def _plan(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    curve = pd.read_csv(folder / "plan_curve.csv")
    return {
        "text": plan_text(plan),
        "rows": plan_rows(pd.read_csv(folder / "plan.csv")),
        "plot": plots.plan(curve, plan["average"], plan["predicted_kl"]),
    }


def plan_text(plan: dict[str, Any]) -> str:
    """The plan's average and predicted loss, beside those of uniform bits."""
    uniform = {int(bits): kl for bits, kl in plan["predicted_kl_uniform"].items()}
    below = max(bits for bits in uniform if bits <= plan["asked_average"])
    return (
        f"For {plan['asked_average']:g} bits a quantized weight, the plan below has {plan['average']:.2f} and a "
        f"predicted KL of {plan['predicted_kl']:.4f} nats a token; {below} bits everywhere have {uniform[below]:.4f}. "
        "Predicted from the float model's gradients and the errors of round to nearest: first order, diagonal, and no "
        "measurement. plan.yaml beside the signals holds it as a scheme for params.yaml."
    )


def plan_rows(linears: pd.DataFrame) -> list[list[str]]:
    """Bits by role and layer, a header first; several linears of a role in a layer as their mean."""
    wide = linears.pivot_table(index="role", columns="layer", values="bits", aggfunc="mean", sort=False)
    wide = wide[sorted(wide.columns)]
    cells = wide.map(lambda bits: "" if pd.isna(bits) else f"{bits:g}")
    rows = zip(cells.index, cells.to_numpy(), strict=True)
    return [["layer", *map(str, wide.columns)], *([role, *row] for role, row in rows)]
