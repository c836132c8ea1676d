"""What the report says of signals, from made-up numbers whose meaning is known and from a tiny model's."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pipeline.artifacts import contract
from pipeline.report import signals
from pipeline.signals import suggest
from tests.unit.signals.test_suggest import gradients

BITS = {
    "asked_average": 4.5,
    "average": 4.48,
    "predicted_kl": 0.012345,
    "predicted_kl_uniform": {"3": 0.5, "4": 0.1, "5": 0.02, "10": 0.0},
}


def test_the_claim_is_told_as_it_is_found():
    """o lies above q and k in one of four layers, v in all: the paper's claim holds in one."""
    suggestion = suggest.freeze_policy(gradients([1.0, 1.5, 3.0, 0.5], [8.0, 9.0, 10.0, 11.0]), "ptq")
    text = signals.freeze_text(suggestion, "ov")
    assert "In ptq it holds for both at once in 1 of 4 layers" in text
    assert "o's gradient norm is 1.25 times" in text
    assert "above both in 1 of 4 layers" in text
    assert "v's gradient norm is 9.50 times" in text
    assert text.endswith("Suggested policy: v; used here: ov.")


def test_where_the_claim_cannot_be_looked_at_it_says_why():
    table = gradients([1.0], [1.0])
    suggestion = suggest.freeze_policy(table[table.role != "q"], "ptq")
    text = signals.freeze_text(suggestion, ["*.o_proj"])
    assert "cannot be looked at here, as the model has no layer with q, k, v, o" in text
    assert "used here: ['*.o_proj']" in text


def test_the_claims_table_has_a_row_a_variant():
    suggestion = suggest.freeze_policy(gradients([1.0, 3.0], [8.0, 9.0]), "ptq")
    without = {"variant": "float", "policy": "none", "reason": "none"}
    header, *rows = signals.claim_rows({"float": without, "ptq": suggestion})
    assert rows == [
        ["float", "-", "-", "-", "-", "-", "none"],
        ["ptq", "2.00", "1 of 2", "8.50", "2 of 2", "1 of 2", suggestion["policy"]],
    ]
    assert {len(row) for row in rows} == {len(header)}


def test_the_dearest_layers_are_named_with_their_cost():
    costs = pd.DataFrame(
        {"layer": [0, 1, 2, 3], "one_layer_kl": [0.3, 0.1, 0.2, 0.4], "first_order_kl": [3.0, 1.0, 2.0, 4.0]}
    )
    text = signals.cost_text({"ptq": costs, "student": costs.drop(columns="one_layer_kl")})
    assert text == (
        "ptq: dearest layers 3 (0.4000), 0 (0.3000), 2 (0.2000), all 1.000 in sum; rank correlation with the "
        "prediction 1.00."
    )
    assert "not measured" in signals.cost_text({"student": costs.drop(columns="one_layer_kl")}).lower()


def test_the_plan_is_held_against_the_widest_uniform_bits_within_its_average():
    text = signals.plan_text(BITS)
    assert "For 4.5 bits" in text
    assert "has 4.48 and a predicted KL of 0.0123" in text
    assert "4 bits everywhere have 0.1000" in text


def test_the_plans_table_has_a_row_a_role_and_a_column_a_layer():
    rows = [("a", 0, "q", 4), ("b", 0, "down", 8), ("c", 10, "q", 3), ("d", 2, "q", 5), ("e", 2, "q", 6)]
    linears = pd.DataFrame(rows, columns=["name", "layer", "role", "bits"])
    assert signals.plan_rows(linears) == [["layer", "0", "2", "10"], ["q", "4", "5.5", "3"], ["down", "8", "", ""]]


@pytest.fixture
def folder(signals_of_a_tiny_model, tmp_path: Path) -> Path:
    """What analyze leaves that the section reads."""
    suggestion = {"freeze": {}, "bits": BITS}
    with contract.writing(tmp_path / "signals", contract.SIGNALS) as draft:
        contract.write_json(draft.path / "suggestion.json", suggestion)
        (draft.path / "plan.csv").write_text("name,layer,role,weights,bits,kl\na,0,q,8,4,0.1\n")
        (draft.path / "plan_curve.csv").write_text("bits,uniform,plan\n2,1.0,1.0\n4,0.1,0.05\n")
        draft.facts = {"variants": ["float", "ptq", "rtn"], "suggested_by": "ptq"}
    return tmp_path / "signals"


@pytest.fixture(scope="session")
def signals_of_a_tiny_model() -> pd.DataFrame:
    """Two variants of two layers, every statistic that is shown."""
    rows = []
    for i, variant in enumerate(("float", "ptq", "rtn")):
        for layer in (0, 1):
            for j, role in enumerate(("q", "k", "v", "o", "gate", "up", "down")):
                what = [("weight", "gradient_norm_sq"), ("output", "gradient_norm_sq"), ("output", "mean_square")]
                what += [("output", "mean_abs"), ("output", "sqnr_db"), ("weight", "sqnr_db")]
                what += [("weight", "gradient_cosine")]
                what += [(tensor, shape) for tensor in ("weight", "input") for shape in signals.SHAPES]
                what += [("cache", shape) for shape in signals.SHAPES if role in ("k", "v")]
                rows += [(variant, layer, role, f"{layer}.{role}", *w, 1.0 + i + j + layer) for w in what]
            rows += [(variant, layer, "layer", str(layer), "layer", "first_order_kl", 0.1 + layer)] * (i > 0)
            rows += [(variant, layer, "layer", str(layer), "layer", "one_layer_kl", 0.2 + layer)] * (i == 1)
    return pd.DataFrame(rows, columns=["variant", "layer", "role", "name", "tensor", "statistic", "value"])


def test_the_section_holds_every_picture_and_a_row_a_variant(folder: Path, signals_of_a_tiny_model):
    variants = ["float", "ptq", "rtn"]
    section = signals.section(folder, signals_of_a_tiny_model, variants, "ov")
    pictures = [section["claim_plot"], section["cost_plot"], section["plan"]["plot"]]
    pictures += [plot for part in ("flow", "distributions") for _, plot in section[part]]
    assert len(pictures) == 3 + 7 + 4
    assert all(picture.startswith("<svg") for picture in pictures)
    assert [row[0] for row in section["claim"][1:]] == variants


def test_a_model_without_attention_has_a_section_too(folder: Path, signals_of_a_tiny_model):
    table = signals_of_a_tiny_model
    mamba = table[table.role.isin(["gate", "up", "down", "layer"]) & (table.tensor != "cache")]
    section = signals.section(folder, mamba, ["float", "ptq"], "none")
    assert section["claim_plot"] == ""
    assert all("keys and values" not in plot for _, plot in section["distributions"])
    assert re.search("cannot be looked at", section["freeze_text"])


def test_float_alone_has_neither_costs_nor_comparisons(folder: Path, signals_of_a_tiny_model):
    contract.write_json(folder / "suggestion.json", {"freeze": {}})
    manifest = contract.read_json(folder / "manifest.json")
    manifest["files"]["suggestion.json"] = contract.sha256(folder / "suggestion.json")
    manifest["facts"]["suggested_by"] = "float"
    contract.write_json(folder / "manifest.json", manifest)
    section = signals.section(folder, signals_of_a_tiny_model, ["float"], "none")
    assert (section["cost_plot"], section["plan"], len(section["flow"])) == ("", None, 4)
