"""A sweep's pictures: training curves laid over each other, and differences from the baseline with their intervals."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report import comparison, plots

PANELS = 3  # side by side
SPREAD = 0.7  # of the room between two settings, that the groups' marks share
LONG = 24  # letters of a label, for which there is no room beside the panels
ENOUGH = 3  # pairs from which an interval is narrow enough to set the scale

Colour = str | tuple[float, float, float, float]


def overlay(curves: pd.DataFrame, columns: Sequence[str], colours: Mapping[str, Colour]) -> str:
    """Training curves of several settings over each other, a panel a column.

    Args:
        curves: compared, experiment and step, and the columns, long by experiment. What is compared has a thin line for
            each of its experiments, and a thick one for their mean where there are several. Lines that are 0 or missing
            all along are left out: what is frozen has no gradient.
        colours: of what is compared.
    """
    high, settings = math.ceil(len(columns) / PANELS), curves["compared"].unique()
    below = len(settings) if max(map(len, settings), default=0) > LONG else 0  # lines of the legend

    def draw(figure: Figure) -> None:
        axes = figure.subplots(high, min(len(columns), PANELS), squeeze=False).ravel()
        for axis, column in zip(axes, columns, strict=False):
            _lines(axis, curves, column, colours)
        for axis in axes[len(columns) :]:
            axis.remove()
        where = {"loc": "outside lower left"} if below else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        beside = figure if below else axes[min(len(columns), PANELS) - 1]
        beside.legend(*axes[0].get_legend_handles_labels(), frameon=False, **where)

    return plots.svg(draw, (10, 0.4 + 2.5 * high + 0.25 * below))


def _lines(axis: Axes, curves: pd.DataFrame, column: str, colours: Mapping[str, Colour]) -> None:
    drawn = curves[curves.groupby("experiment")[column].transform(lambda line: line.abs().max()) > 0]
    for setting, mine in drawn.groupby("compared", sort=False):
        colour = colours[str(setting)]
        lines = [line for _, line in mine.groupby("experiment", sort=False)]
        for line in lines:
            axis.plot(line["step"], line[column], color=colour, lw=0.7, alpha=0.5)
        middle = mine.groupby("step")[column].mean()
        axis.plot(middle.index, middle, color=colour, lw=1.8 if lines[1:] else 1.2, label=setting)
    if drawn[column].min() > 0:
        axis.set_yscale("log")
    axis.set(title=column, xlabel="step")


def shades(settings: Sequence[str]) -> dict[str, Colour]:
    """A colour for each setting, all of them well apart up to ten."""
    few = len(settings) <= 10
    colours = matplotlib.colormaps["tab10" if few else "turbo"]
    places = range(len(settings)) if few else np.linspace(0, 1, len(settings))
    return dict(zip(settings, map(colours, places), strict=True))


def differences(table: pd.DataFrame) -> str:
    """Paired differences from the baseline with their 95 % intervals, a panel a metric.

    Args:
        table: rows of `comparison.compare` that have pairs. What is compared has a place on the axis, values of the
            other knobs a colour; over all of them it is black. An interval of fewer than three pairs may reach out of
            the picture.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(table["compared"]))}
    groups = sorted(dict.fromkeys(table["others"]), key=comparison.OVER_ALL.__eq__)  # it comes last
    colours = {**shades([group for group in groups if group != comparison.OVER_ALL]), comparison.OVER_ALL: "#000000"}
    step = SPREAD / len(groups)

    def draw(figure: Figure) -> None:
        metrics = [*dict.fromkeys(table["metric"])]
        for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            shown = table[table["metric"] == metric]
            for i, group in enumerate(groups):
                mine = shown[shown["others"] == group]
                at = [places[name] + (i - (len(groups) - 1) / 2) * step for name in mine["compared"]]
                reach = [(mine["difference"] - mine["low"]).fillna(0), (mine["high"] - mine["difference"]).fillna(0)]
                colour, label = colours[group], group or None
                axis.errorbar(at, mine["difference"], yerr=reach, fmt="o", ms=4, lw=1.2, color=colour, label=label)
            axis.axhline(0.0, color="#333333", lw=1, ls="--")
            axis.set_ylim(*_limits(shown))
            axis.set_xticks([*places.values()], [*places])
            axis.set_ylabel(f"difference, {'log ' if comparison.is_perplexity(metric) else ''}{metric}")
        if any(groups):
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    return plots.svg(draw, (10, 3.4))


def _limits(shown: pd.DataFrame) -> tuple[float, float]:
    sure = shown[shown["pairs"] >= ENOUGH]
    ordinates = pd.concat([shown["difference"], sure["low"], sure["high"]]).dropna()
    low, high = min(0.0, *ordinates), max(0.0, *ordinates)
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room
