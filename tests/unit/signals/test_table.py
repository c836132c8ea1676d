from pathlib import Path

import pandas as pd
import pytest

from pipeline.knobs.freezing import ROLES
from pipeline.signals import table
from pipeline.signals.table import COLUMNS, by_layer, layers


def test_a_statistic_by_layer_is_a_column_a_role(signals):
    rows = signals.table
    wide = by_layer(rows, "ptq", "weight", "gradient_norm_sq")
    assert list(wide.columns) == ["layer", "q", "k", "v", "o", "gate", "up", "down"]
    chosen = rows[(rows.variant == "ptq") & (rows.statistic == "gradient_norm_sq") & (rows.tensor == "weight")]
    (value,) = chosen[(chosen.layer == 1) & (chosen.role == "down")].value
    assert wide.set_index("layer").loc[1, "down"] == value
    assert list(by_layer(rows, "rtn", "cache", "std").columns) == ["layer", "k", "v"]


def test_several_linears_of_a_role_in_a_layer_are_averaged():
    rows = [("x", 0, "other", f"e{i}", "weight", "gradient_norm_sq", v) for i, v in enumerate((1.0, 3.0))]
    averages = by_layer(pd.DataFrame(rows, columns=COLUMNS), "x", "weight", "gradient_norm_sq")
    assert averages.to_dict("list") == {"layer": [0], "other": [2.0]}


def test_what_a_model_does_not_have_is_an_empty_table(signals):
    rows = signals.table
    without = by_layer(rows[rows.tensor != "cache"], "ptq", "cache", "std")
    assert (list(without.columns), len(without)) == (["layer"], 0)
    assert len(layers(rows, "float")) == 0


def test_what_is_known_of_whole_layers(signals):
    """The first-order sensitivities of a layer's linears, times tokens / 2, add up to the KL that they predict."""
    sensitivities = layers(signals.table, "rtn")
    assert list(sensitivities.columns) == ["layer", "first_order_kl", "one_layer_kl"]
    assert sensitivities.layer.tolist() == [0, 1]
    mine = signals.table[(signals.table.variant == "rtn") & (signals.table.statistic == "first_order")]
    predicted = 76 / 2 * mine.groupby("layer").value.sum()  # 20 + 7 + 20 + 13 + 2 + 20 tokens in 6 sequences
    assert sensitivities.first_order_kl.tolist() == pytest.approx(predicted.tolist())
    assert sensitivities.one_layer_kl.min() > 0


def test_the_files_hold_the_table_and_its_curves(signals, tmp_path: Path):
    table.write(signals.table, ["float", "ptq", "rtn"], tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "signals.parquet"), signals.table)
    names = {file.name for file in tmp_path.glob("*.csv")}
    assert {"gradient_norm_float.csv", "cache_kurtosis_rtn.csv", "sqnr_ptq.csv", "sensitivity_rtn.csv"} <= names
    assert not {"sqnr_float.csv", "gradient_cosine_float.csv", "sensitivity_float.csv"} & names
    for variant in ("float", "ptq", "rtn"):
        for name, (tensor, statistic) in table.curves(variant).items():
            read = pd.read_csv(tmp_path / f"{name}_{variant}.csv")
            pd.testing.assert_frame_equal(
                read, by_layer(signals.table, variant, tensor, statistic), rtol=1e-5, check_dtype=False
            )
    shown = {statistic for variant in ("float", "ptq") for _, statistic in table.curves(variant).values()}
    assert shown == {*signals.table.statistic} - {"one_layer_kl", "first_order_kl"}


def test_the_roles_of_the_model_are_those_that_the_table_orders(signals):
    assert {*signals.table.role} - {"layer"} <= {*ROLES}
    assert len({*ROLES}) == len(ROLES)
