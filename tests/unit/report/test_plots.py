import math
import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from pipeline.freezing import ROLES
from pipeline.report import plots

SVG = "{http://www.w3.org/2000/svg}"
TABLE = pd.DataFrame({"layer": [0, 1, 2], "q": [1.0, 2.0, 4.0], "o": [10.0, 40.0, 90.0], "other": [5.0, 5.0, 5.0]})
LOG = pd.DataFrame(
    {
        "step": range(1, 21),
        "kl": [1 / s for s in range(1, 21)],
        "ce": [2.0] * 20,
        "lr": [1e-4] * 20,
        "gradient_norm": [3.0 + s for s in range(20)],
        "gradient_norm.q": [1.0 + s for s in range(20)],
        "gradient_norm.v": [0.0] * 20,
    }
)
TAB10 = ("#1f77b4", "#ff7f0e")  # the first of matplotlib's colours
VARIANTS = ("teacher", "rtn", "ptq", "student")
SUMMARY = {
    f"task.{task}.{variant}{suffix}": value
    for task in ("piqa", "arc_easy")
    for variant in VARIANTS
    for suffix, value in (("", 0.5), (".stderr", 0.05))
}


def by_layer() -> str:
    return plots.by_layer({"float": TABLE, "ptq": TABLE.assign(o=[7.0, 8.0, 9.0])}, "squared norm")


def training() -> str:
    return plots.training(LOG)


def tasks() -> str:
    return plots.tasks(SUMMARY, ["arc_easy", "piqa"], VARIANTS)


def claim() -> str:
    found = pd.DataFrame({"layer": [0, 1, 2], "o_ratio": [0.5, 1.0, 3.0], "v_ratio": [9.0, 12.0, 4.0]})
    return plots.claim({"float": found, "ptq": found})


def sensitivity() -> str:
    predicted = pd.DataFrame({"layer": [0, 1, 2], "first_order_kl": [0.2, 0.1, 0.4]})
    return plots.sensitivity({"ptq": predicted.assign(one_layer_kl=[0.3, 0.1, 0.2]), "student": predicted})


def plan() -> str:
    curve = pd.DataFrame({"bits": [2, 3, 4], "uniform": [1.0, 0.2, 0.05], "plan": [1.0, 0.1, 0.02]})
    return plots.plan(curve, 3.5, 0.07)


def curves(settings: list[str], seeds: int = 2) -> pd.DataFrame:
    """KL as (number of the setting + 1) / step, a little higher for each seed, and a norm that is 0 at first."""
    rows = [
        (setting, f"{setting}-{seed}", step, (i + 1) / step * (1 + seed / 10), float(step - 1))
        for i, setting in enumerate(settings)
        for seed in range(seeds)
        for step in range(1, 6)
    ]
    return pd.DataFrame(rows, columns=["setting", "experiment", "step", "kl", "gradient_norm"])


def overlay() -> str:
    return plots.overlay(curves(["none", "ov"]), ["kl", "gradient_norm"])


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (overlay, ["none", "ov", "kl", "gradient_norm", "step"]),
        (claim, ["float", "ptq", "layer", "o", "v", "as q and k"]),
        (sensitivity, ["ptq", "student", "KL, nats a token", "measured, one layer on", "predicted, first order"]),
        (plan, ["predicted KL, nats a token", "the plan", "the same bits everywhere"]),
        (by_layer, ["float", "ptq", "layer", "squared norm", "q", "o", "other"]),
        (training, ["step", "nats a token", "learning rate (dashed)"]),
        (tasks, ["arc_easy", "piqa", "accuracy, %", *VARIANTS]),
    ],
    ids=["overlay", "claim", "sensitivity", "plan", "by_layer", "training", "tasks"],
)
class TestEveryPicture:
    def test_says_what_it_shows(self, draw, words):
        text = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(draw()).iter(f"{SVG}text")}
        assert set(words) <= text

    def test_is_the_same_for_the_same_numbers(self, draw, words):
        assert draw() == draw()

    def test_holds_finite_numbers_only(self, draw, words):
        paths = " ".join(node.get("d", "") for node in ElementTree.fromstring(draw()).iter(f"{SVG}path"))
        assert re.search(r"\d", paths)
        assert not re.search(r"nan|inf", paths, re.IGNORECASE)

    def test_asks_for_nothing_from_outside(self, draw, words):
        picture = draw()
        assert picture.startswith("<svg")
        links = re.findall(r"""(?:href|src)\s*=\s*["']([^"']*)["']|url\(([^)]*)\)""", picture)
        assert all((a or b).startswith("#") for a, b in links)
        assert "<image" not in picture


def heights(picture: str) -> list[float]:
    """The y coordinates (downwards) of the longest line drawn in orange-red of KL."""
    nodes = ElementTree.fromstring(picture).iter(f"{SVG}path")
    (line,) = [
        n.get("d", "") for n in nodes if "stroke: #b01e3b" in n.get("style", "") and "opacity" not in n.get("style", "")
    ][:1]
    return [float(y) for _, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line)]


def test_the_training_curve_falls_as_the_numbers_do():
    """1 / step: from the first point on, each drop is drawn in proportion to the number's."""
    y = heights(training())
    assert len(y) == 20
    drawn = [(y[-1] - value) / (y[-1] - y[0]) for value in y]
    expected = [(1 / s - 1 / 20) / (1 - 1 / 20) for s in range(1, 21)]
    assert drawn == pytest.approx(expected, abs=1e-3)


def test_the_gradient_by_role_leaves_out_what_is_frozen():
    assert plots.COLOURS["q"] in training()
    assert plots.COLOURS["v"] not in training()
    assert plots.COLOURS["v"] in plots.training(LOG.assign(**{"gradient_norm.v": 2.0}))
    assert plots.training(LOG.assign(**{"gradient_norm.q": 0.0}))  # all is frozen but what has no role


def test_numbers_that_are_not_positive_are_drawn_on_a_linear_scale():
    shown = plots.by_layer({"ptq": TABLE.assign(q=[0.0, 1.0, 2.0])}, "mean square")
    assert shown != plots.by_layer({"ptq": TABLE.assign(q=[0.1, 1.0, 2.0])}, "mean square")
    assert plots.by_layer({"ptq": TABLE.assign(q=[0.0, 1.0, 2.0])}, "mean square", log=False) == shown


def drawn_in(picture: str, colour: str) -> list[list[float]]:
    """The y coordinates (downwards) of each line of several points drawn in a colour."""
    nodes = [n for n in ElementTree.fromstring(picture).iter(f"{SVG}path") if f"stroke: {colour}" in n.get("style", "")]
    lines = [[float(y) for _, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", node.get("d", ""))] for node in nodes]
    return [line for line in lines if len(line) > 2]


def test_the_claims_ratios_are_drawn_on_a_logarithmic_scale_around_1():
    """0.5, 1 and 3 for o: from the second point, at the height of the dashed line, as their logarithms."""
    (o, *_), (v, *_) = drawn_in(claim(), plots.COLOURS["o"]), drawn_in(claim(), plots.COLOURS["v"])
    dashed = [n for n in ElementTree.fromstring(claim()).iter(f"{SVG}path") if "dasharray" in n.get("style", "")]
    assert o[1] == pytest.approx(float(dashed[0].get("d", "").split()[2]), abs=0.01)
    unit = (o[0] - o[1]) / math.log(2)
    assert [(o[1] - y) / unit for y in (o[2], *v)] == pytest.approx([math.log(x) for x in (3, 9, 12, 4)], abs=0.01)


def test_a_setting_has_one_colour_a_thin_line_a_seed_and_a_thick_one_for_their_mean():
    """KL on a logarithmic scale: 1.05 / step between 1 / step and 1.1 / step."""
    lines = drawn_in(overlay(), TAB10[0])
    first, second, mean = [line for line in lines if line[0] < line[-1]]  # KL falls, so y, downwards, grows
    unit = (first[1] - first[0]) / math.log(2)
    assert [(first[0] - line[0]) / unit for line in (second, mean)] == pytest.approx(
        [math.log(1.1), math.log(1.05)], abs=0.01
    )
    widths = re.findall(rf"stroke: {TAB10[0]}(?:; stroke-opacity: [\d.]+)?; stroke-width: ([\d.]+)", overlay())
    assert {"0.7", "1.8"} <= {*widths}


def test_a_setting_with_one_seed_is_drawn_over_its_own_line():
    lines = drawn_in(plots.overlay(curves(["none"], seeds=1), ["kl"]), TAB10[0])
    assert lines[0] == lines[1]


def test_what_has_no_gradient_is_left_out_and_does_not_spoil_the_scale():
    """v's norm under a policy that freezes v is 0 or missing; the other policy's stays on a logarithmic scale."""
    table = curves(["none", "v", "ov"], seeds=1)
    norm = table["kl"].where(table["setting"] != "v", 0.0).where(table["setting"] != "ov")
    picture = plots.overlay(table.assign(**{"gradient_norm.v": norm}), ["gradient_norm.v"])
    alone = plots.overlay(table[table["setting"] == "none"].assign(**{"gradient_norm.v": norm}), ["gradient_norm.v"])
    shown = [line for line in drawn_in(picture, TAB10[0]) if line[0] < line[-1]]
    assert shown == [line for line in drawn_in(alone, TAB10[0]) if line[0] < line[-1]]
    assert drawn_in(picture, TAB10[1]) == []


def test_many_settings_have_as_many_colours():
    names = [f"s{i}" for i in range(14)]
    picture = plots.overlay(curves(names), ["kl"])
    assert len({*re.findall(r"stroke: (#[0-9a-f]{6}); stroke-opacity: 0.5", picture)}) == 14


def test_more_columns_than_fit_a_row_go_on_in_the_next():
    table = curves(["none"]).assign(**{f"gradient_norm.{role}": 1.0 for role in ("q", "k")})
    picture = plots.overlay(table, ["kl", "gradient_norm", "gradient_norm.q", "gradient_norm.k"])
    marks = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(picture).iter(f"{SVG}text")}
    assert {"kl", "gradient_norm", "gradient_norm.q", "gradient_norm.k"} <= marks
    assert 'height="489.6pt"' in picture  # two rows of 3.4 inches


def test_layers_are_whole_numbers():
    marks = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(by_layer()).iter(f"{SVG}text")}
    assert {"0", "1", "2"} <= marks
    assert not {"0.5", "1.5", "0.50"} & marks


def test_panels_may_have_a_scale_of_their_own():
    tables = {"weights": TABLE, "inputs": TABLE.assign(q=[1e3, 2e3, 3e3])}
    shared, apart = (plots.by_layer(tables, "kurtosis", common=common) for common in (True, False))
    small, large = (max(q) - min(q) for q in (drawn_in(p, plots.COLOURS["q"])[0] for p in (shared, apart)))
    assert large > 1.5 * small


def test_the_legend_names_the_roles_of_the_fullest_panel():
    picture = plots.by_layer({"weights": TABLE, "keys and values": TABLE[["layer", "o"]]}, "kurtosis")
    assert {"q", "o", "other"} <= {
        "".join(n.itertext()).strip() for n in ElementTree.fromstring(picture).iter(f"{SVG}text")
    }


def test_every_role_has_a_colour_of_its_own():
    assert set(plots.COLOURS) == {*ROLES, "other"}
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert set(plots.VARIANT_COLOURS) == set(VARIANTS)
