import math
import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.knobs.freezing import ROLES
from pipeline.report import plots, score_plots
from tests.unit.report.pictures import SVG, differences, drawn_in, overlay, words_of

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
    return score_plots.tasks(SUMMARY, ["arc_easy", "piqa"], VARIANTS)


def claim() -> str:
    ratios = pd.DataFrame({"layer": [0, 1, 2], "o_ratio": [0.5, 1.0, 3.0], "v_ratio": [9.0, 12.0, 4.0]})
    return plots.claim({"float": ratios, "ptq": ratios})


def sensitivity() -> str:
    predicted = pd.DataFrame({"layer": [0, 1, 2], "first_order_kl": [0.2, 0.1, 0.4]})
    return plots.sensitivity({"ptq": predicted.assign(one_layer_kl=[0.3, 0.1, 0.2]), "student": predicted})


def plan() -> str:
    curve = pd.DataFrame({"bits": [2, 3, 4], "uniform": [1.0, 0.2, 0.05], "plan": [1.0, 0.1, 0.02]})
    return plots.plan(curve, 3.5, 0.07)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (overlay, ["none", "ov", "kl", "gradient_norm", "step"]),
        (differences, ["o", "v", "lr=1", "lr=2", "over all", "difference, end.kl", "difference, log perplexity"]),
        (claim, ["float", "ptq", "layer", "o", "v", "as q and k"]),
        (sensitivity, ["ptq", "student", "KL, nats a token", "measured, one layer on", "predicted, first order"]),
        (plan, ["predicted KL, nats a token", "the plan", "the same bits everywhere"]),
        (by_layer, ["float", "ptq", "layer", "squared norm", "q", "o", "other"]),
        (training, ["step", "nats a token", "learning rate (dashed)"]),
        (tasks, ["arc_easy", "piqa", "accuracy, %", *VARIANTS]),
    ],
    ids=["overlay", "differences", "claim", "sensitivity", "plan", "by_layer", "training", "tasks"],
)
class TestEveryPicture:
    def test_says_what_it_shows(self, draw, words):
        assert set(words) <= words_of(draw())

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


def test_the_claims_ratios_are_drawn_on_a_logarithmic_scale_around_1():
    """0.5, 1 and 3 for o: from the second point, at the height of the dashed line, as their logarithms."""
    (o, *_), (v, *_) = drawn_in(claim(), plots.COLOURS["o"]), drawn_in(claim(), plots.COLOURS["v"])
    dashed = [n for n in ElementTree.fromstring(claim()).iter(f"{SVG}path") if "dasharray" in n.get("style", "")]
    assert o[1] == pytest.approx(float(dashed[0].get("d", "").split()[2]), abs=0.01)
    unit = (o[0] - o[1]) / math.log(2)
    assert [(o[1] - y) / unit for y in (o[2], *v)] == pytest.approx([math.log(x) for x in (3, 9, 12, 4)], abs=0.01)


def test_layers_are_whole_numbers():
    marks = words_of(by_layer())
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


def test_sizes_are_drawn_with_their_numbers_in_the_legend():
    points = [("rtn", 110e6, 0.923), ("student", 167e6, 0.119), ("sizes: scheme=W8A16", 163e6, 0.0042)]
    words = words_of(score_plots.sizes(points, 538e6))
    assert {
        "rtn: 110 MB, KL 0.923",
        "student: 167 MB, KL 0.119",
        "sizes: scheme=W8A16: 163 MB, KL 0.0042",
        "teacher: 538 MB",
        "MB on disk",
    } <= words
    assert score_plots.sizes([("rtn", 1e6, 0.0)], 2e6).startswith("<svg"), "no logarithm of nothing"


def test_a_legend_fits_into_the_picture_of_sizes(monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(plots, "svg", lambda draw, size: drawn.append((draw, size)) or "")
    score_plots.sizes([("sizes: scheme=W4g32A16E8H6 method=gptq rotation=hadamard", 110e6, 0.081)], 538e6)
    ((draw, size),) = drawn
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_a_picture_of_its_own_is_a_whole_file_on_white():
    root = ElementTree.fromstring(plots.alone(score_plots.sizes([("rtn", 1e6, 0.5)], 2e6)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("style") == "background: white"
