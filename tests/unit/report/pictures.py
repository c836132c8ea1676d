"""Pictures of sweeps to test, and what can be read out of a picture's SVG."""

import re
from xml.etree import ElementTree

import pandas as pd

from pipeline.report import comparison, overlays

SVG = "{http://www.w3.org/2000/svg}"


def words_of(picture: str) -> set[str]:
    """Every text that it shows."""
    return {"".join(node.itertext()).strip() for node in ElementTree.fromstring(picture).iter(f"{SVG}text")}


def lines_in(picture: str, colour: str) -> list[list[tuple[float, float]]]:
    """The points (x, and y downwards) of each line drawn in a colour."""
    nodes = [n for n in ElementTree.fromstring(picture).iter(f"{SVG}path") if f"stroke: {colour}" in n.get("style", "")]
    points = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", node.get("d", "")) for node in nodes]
    return [[(float(x), float(y)) for x, y in line] for line in points]


def drawn_in(picture: str, colour: str) -> list[list[float]]:
    """The y coordinates (downwards) of each line of several points drawn in a colour."""
    return [[y for _, y in line] for line in lines_in(picture, colour) if len(line) > 2]


def curves(settings: list[str], seeds: int = 2) -> pd.DataFrame:
    """KL as (number of the setting + 1) / step, a little higher for each seed, and a norm that is 0 at first."""
    rows = [
        (setting, f"{setting}-{seed}", step, (i + 1) / step * (1 + seed / 10), float(step - 1))
        for i, setting in enumerate(settings)
        for seed in range(seeds)
        for step in range(1, 6)
    ]
    return pd.DataFrame(rows, columns=["compared", "experiment", "step", "kl", "gradient_norm"])


def overlaid(table: pd.DataFrame, columns: list[str]) -> str:
    return overlays.overlay(table, columns, overlays.shades([*dict.fromkeys(table["compared"])]))


def overlay() -> str:
    return overlaid(curves(["none", "ov"]), ["kl", "gradient_norm"])


def differences() -> str:
    """Two policies at two rates and over both, by two metrics; an interval that is missing, and one that is wide."""
    rows = [
        ("o", "lr=1", 3, 1.0, 0.5, 1.5),
        ("o", "lr=2", 1, 2.0, None, None),
        ("o", comparison.OVER_ALL, 4, 1.25, 1.0, 1.5),
        ("v", "lr=1", 2, -1.0, -90.0, 88.0),
        ("v", comparison.OVER_ALL, 2, -1.0, -90.0, 88.0),
    ]
    table = pd.DataFrame(rows, columns=["compared", "others", "pairs", "difference", "low", "high"])
    both = [table.assign(metric=metric) for metric in ("end.kl", "perplexity")]
    return overlays.differences(pd.concat(both, ignore_index=True))
