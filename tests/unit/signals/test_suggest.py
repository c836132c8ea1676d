"""The freezing paper's claim and the suggested policy, on made-up gradients whose answer is known."""

import pandas as pd
import pytest

from pipeline.knobs.freezing import FREEZE_POLICIES, terms
from pipeline.signals.suggest import claim, freeze_policy
from pipeline.signals.table import COLUMNS


def gradients(o: list[float], v: list[float], qk: tuple[float, float] = (0.5, 2.0)) -> pd.DataFrame:
    """Gradient norms of four projections by layer; q's and k's geometric mean is 1."""
    columns = {"q": [qk[0]] * len(o), "k": [qk[1]] * len(o), "o": o, "v": v}
    rows = [
        ("ptq", layer, role, f"{layer}.{role}", "weight", "gradient_norm_sq", value)
        for role, values in columns.items()
        for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(
    ("o", "v", "policy"),
    [
        ([2, 3, 2, 9], [2, 2, 2, 2], "ov"),
        ([2, 2, 2, 2], [1.9, 1.9, 1.9, 1.9], "o"),
        ([1, 1, 1, 1], [9, 9, 9, 9], "v"),
        ([1.9, 1.9, 1.9, 1.9], [1, 1, 1, 1], "none"),
        ([9, 9, 9, 0.5], [9, 9, 0.5, 0.5], "o"),  # above q and k in three and in two of four layers
    ],
)
def test_the_roles_whose_gradients_stand_out_are_suggested(o: list[float], v: list[float], policy: str):
    suggestion = freeze_policy(gradients(o, v), "ptq")
    assert (suggestion["variant"], suggestion["policy"]) == ("ptq", policy)
    assert set(FREEZE_POLICIES[policy]) <= {"o", "v"}
    assert {role for term in terms(policy) for role in term.roles} == set(FREEZE_POLICIES[policy])


def test_the_evidence_is_relative_to_q_and_k():
    """Their geometric mean is 4 here: a median of 12 / 4, above 4 in two of three layers; above 8 in two and none."""
    suggestion = freeze_policy(gradients([12, 20, 3], [4, 4, 8], qk=(2.0, 8.0)), "ptq")
    assert suggestion["evidence"]["o"] == {
        "median_ratio_to_qk": 3.0,
        "share_of_layers_above_qk": pytest.approx(2 / 3),
        "layers_above_q_and_k": 2,
    }
    assert suggestion["evidence"]["v"] == {
        "median_ratio_to_qk": 1.0,
        "share_of_layers_above_qk": pytest.approx(1 / 3),
        "layers_above_q_and_k": 0,
    }
    assert suggestion["median_gradient_norm_sq"] == {"q": 2.0, "k": 8.0, "v": 4.0, "o": 12.0}
    assert (suggestion["layers"], suggestion["layers_where_the_claim_holds"]) == (3, 0)


def test_the_claim_is_looked_at_layer_by_layer():
    ratios = claim(gradients([3.0, 3.0, 1.0], [4.0, 1.5, 8.0]), "ptq")
    assert list(ratios.columns) == ["layer", "q", "k", "v", "o", "v_ratio", "o_ratio", "v_above", "o_above"]
    assert ratios.o_ratio.tolist() == [3.0, 3.0, 1.0]  # q 0.5 and k 2: their geometric mean is 1
    assert ratios.v_ratio.tolist() == [4.0, 1.5, 8.0]
    assert ratios.o_above.tolist() == [1, 1, 0]  # above the larger of the two, 2
    assert ratios.v_above.tolist() == [1, 0, 1]
    assert freeze_policy(gradients([3.0, 3.0, 1.0], [4.0, 1.5, 8.0]), "ptq")["layers_where_the_claim_holds"] == 1


def test_layers_that_lack_a_projection_are_left_out():
    """A hybrid model has attention in some of its layers."""
    table = gradients([2, 9, 2], [3, 9, 3])
    assert claim(table[(table.layer != 1) | (table.role == "o")], "ptq").layer.tolist() == [0, 2]


@pytest.mark.parametrize("missing", ["q", "k", "v", "o"])
def test_a_model_without_separate_projections_gets_no_suggestion(missing: str):
    table = gradients([9], [9])
    suggestion = freeze_policy(table[table.role != missing], "ptq")
    assert suggestion == {
        "variant": "ptq",
        "policy": "none",
        "reason": "the model has no layer with q, k, v, o that can be told apart",
    }
    assert claim(table[table.role != missing], "ptq").empty
