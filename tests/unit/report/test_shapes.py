"""Shapes of weights and inputs beside what quantizing a layer costs."""

import pandas as pd

from pipeline.report import shapes
from tests.unit.report.pictures import drawn_in, words_of


def table(kurtosis: list[float], std: list[float]) -> pd.DataFrame:
    """Of weights q and v, v's twice q's; inputs have ten times as much, and another variant other numbers."""
    rows = [
        (variant, layer, role, f"{layer}.{role}", tensor, statistic, factor * by_role * by_tensor * value)
        for statistic, column in {"kurtosis": kurtosis, "std": std}.items()
        for layer, value in enumerate(column)
        for role, by_role in (("q", 1), ("v", 2))
        for tensor, by_tensor in (("weight", 1), ("input", 10))
        for variant, factor in (("float", 1), ("ptq", 77))
    ]
    return pd.DataFrame(rows, columns=["variant", "layer", "role", "name", "tensor", "statistic", "value"])


def cost(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(len(values)), "one_layer_kl": values, "first_order_kl": 1.0})


def test_a_layers_shape_is_the_mean_over_the_float_models_linears():
    wide = shapes.by_tensor(table([2.0, 4.0], [1.0, 1.0]), "kurtosis")
    assert wide["weight"].tolist() == [3.0, 6.0]
    assert wide["input"].tolist() == [30.0, 60.0]


def test_the_caption_says_how_well_each_shape_ranks_the_layers():
    signals = table([3.0, 4.0, 9.0, 5.0], [0.4, 0.3, 0.1, 0.2])
    note = shapes.note(signals, {"ptq": cost([0.1, 0.2, 0.4, 0.3]), "student": cost([1.0] * 4).iloc[:, [0, 2]]})
    assert note.endswith(
        " Rank correlation with the KL of ptq: weights' kurtosis 1.00, inputs' kurtosis 1.00, weights' standard "
        "deviation -1.00, inputs' standard deviation -1.00."
    )
    assert "Rank" not in shapes.note(signals.query("layer < 2"), {"ptq": cost([0.1, 0.2])})


def test_the_picture_has_a_panel_a_shape_and_one_of_the_cost():
    signals = table([3.0, 4.0, 9.0, 5.0], [0.4, 0.3, 0.1, 0.2])
    picture = shapes.picture(signals, {"ptq": cost([0.1, 0.2, 0.4, 0.3]), "rtn": cost([0.4, 0.3, 0.2, 0.1])})
    assert {"kurtosis", "standard deviation", "weights", "inputs", "ptq", "rtn"} <= words_of(picture)
    lines = [line for line in drawn_in(picture, shapes.TENSORS["weight"][1]) if len(line) == 4]
    assert [line.index(min(line)) for line in lines[:2]] == [2, 0], "y goes downwards"
    assert shapes.picture(signals, {"ptq": cost([0.1] * 4).iloc[:, [0, 2]]}) == ""
    assert shapes.picture(signals, {}) == ""
