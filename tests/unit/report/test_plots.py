import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from pipeline.models import ROLES
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
    return plots.tasks(SUMMARY, ["arc_easy", "piqa"], VARIANTS)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (by_layer, ["float", "ptq", "layer", "squared norm", "q", "o", "other"]),
        (training, ["step", "nats a token", "learning rate (dashed)"]),
        (tasks, ["arc_easy", "piqa", "accuracy, %", *VARIANTS]),
    ],
    ids=["by_layer", "training", "tasks"],
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


def test_numbers_that_are_not_positive_are_drawn_on_a_linear_scale():
    shown = plots.by_layer({"ptq": TABLE.assign(q=[0.0, 1.0, 2.0])}, "mean square")
    assert shown != plots.by_layer({"ptq": TABLE.assign(q=[0.1, 1.0, 2.0])}, "mean square")
    assert plots.by_layer({"ptq": TABLE.assign(q=[0.0, 1.0, 2.0])}, "mean square", log=False) == shown


def test_every_role_has_a_colour_of_its_own():
    assert set(plots.COLOURS) == {*ROLES, "other"}
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert set(plots.VARIANT_COLOURS) == set(VARIANTS)
