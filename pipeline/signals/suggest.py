"""What the signals suggest: a freeze policy, from the claim of "Oh! We Freeze" (2403.18159) on the model at hand.

The claim: the gradient norms of o's and v's weights lie above those of q's and k's, which makes o and v the projections
to hold still.
"""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.knobs.freezing import FREEZE_POLICIES
from pipeline.signals.table import by_layer

ATTENTION = ("q", "k", "v", "o")
RATIO = 2.0  # how far above q's and k's gradient norm a role's must lie to be called the stronger
SHARE = 0.75  # in how many of the layers


def claim(table: pd.DataFrame, variant: str) -> pd.DataFrame:
    """||dL/dW||^2 of q, k, v and o by layer, o's and v's over the geometric mean of q's and k's, and what lies above.

    Returns:
        Columns layer, q, k, v, o, v_ratio, o_ratio, v_above, o_above (1: above q's and above k's; else 0); a row for
        each layer that has all four, none for a model that cannot tell them apart.
    """
    wide = by_layer(table, variant, "weight", "gradient_norm_sq").reindex(columns=["layer", *ATTENTION]).dropna()
    wide = wide.reset_index(drop=True)
    floor, top = np.sqrt(wide["q"] * wide["k"]), wide[["q", "k"]].max(axis=1)
    for role in ("v", "o"):
        wide[f"{role}_ratio"] = wide[role] / floor
    for role in ("v", "o"):
        wide[f"{role}_above"] = (wide[role] > top).astype(int)
    return wide


def freeze_policy(table: pd.DataFrame, variant: str) -> dict[str, Any]:
    """The freeze policy that the gradients of attention's projections suggest, with the numbers behind it.

    A role (o, v) is suggested where its ||dL/dW||^2, divided by the layer's geometric mean of q's and k's, is at least
    RATIO in the median layer, and above 1 in at least SHARE of the layers.
    """
    ratios = claim(table, variant)
    if ratios.empty:
        reason = f"the model has no layer with {', '.join(ATTENTION)} that can be told apart"
        return {"variant": variant, "policy": "none", "reason": reason}
    evidence: dict[str, Any] = {}
    for role in ("o", "v"):
        ratio: pd.Series = ratios[f"{role}_ratio"]
        evidence[role] = {
            "median_ratio_to_qk": float(ratio.median()),
            "share_of_layers_above_qk": float(ratio.gt(1).mean()),
            "layers_above_q_and_k": int(ratios[f"{role}_above"].sum()),
        }
    strong = tuple(
        role
        for role, numbers in evidence.items()
        if numbers["median_ratio_to_qk"] >= RATIO and numbers["share_of_layers_above_qk"] >= SHARE
    )
    policy = next(name for name, roles in FREEZE_POLICIES.items() if roles == strong)
    return {
        "variant": variant,
        "policy": policy,
        "evidence": evidence,
        "layers": len(ratios),
        "layers_where_the_claim_holds": int((ratios["o_above"] * ratios["v_above"]).sum()),
        "median_gradient_norm_sq": {role: float(ratios[role].median()) for role in ATTENTION},
    }
