"""Pictures of signals and training, as SVG text that is the same for the same numbers."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {
    "q": "#4c78a8",
    "k": "#72b7b2",
    "v": "#e45756",
    "o": "#b01e3b",
    "gate": "#8c8c8c",
    "up": "#b8b8b8",
    "down": "#54a24b",
    "in": "#9467bd",
    "x": "#c49c6b",
    "out": "#6b5b95",
    "other": "#000000",
}
VARIANT_COLOURS = {"teacher": "#333333", "rtn": "#d9a441", "ptq": "#4c78a8", "student": "#b01e3b"}
STYLE: Any = {
    "svg.hashsalt": "permafrost",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def by_layer(tables: dict[str, pd.DataFrame], label: str, log: bool = True, common: bool = True) -> str:
    """One statistic by layer, a line a role, a panel a table.

    Args:
        tables: title (a variant) to a wide table with a column `layer` and one a role.
        log: a logarithmic scale, where all numbers of a panel are above 0.
        common: all panels on one scale.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(tables), sharey=common, squeeze=False)[0]
        for axis, wide in zip(axes, tables.values(), strict=True):
            for role in wide.columns.drop("layer"):
                strong = role in ("v", "o")
                axis.plot(
                    wide["layer"],
                    wide[role],
                    color=COLOURS[role],
                    label=role,
                    lw=2 if strong else 1.2,
                    marker=".",
                    ms=4,
                )
            least = wide.drop(columns="layer").to_numpy().min()
            if log and least > 0:
                axis.set_yscale("log")
            elif least == 0:
                axis.set_ylim(bottom=0)
        _finish(axes, [*tables], label)

    return svg(draw, (10, 3.6))


def claim(tables: dict[str, pd.DataFrame]) -> str:
    """How far o's and v's gradient norms lie above q's and k's, by layer, a panel a variant; 1 is where they are equal.

    Args:
        tables: variant to a table with the columns layer, o_ratio and v_ratio.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axis, ratios in zip(axes, tables.values(), strict=True):
            for role in ("v", "o"):
                axis.plot(ratios["layer"], ratios[f"{role}_ratio"], color=COLOURS[role], label=role, lw=2, marker=".")
            axis.axhline(1.0, color="#333333", lw=1, ls="--", label="as q and k")
            axis.set_yscale("log")
        _finish(axes, [*tables], "||dL/dW||² over q's and k's mean")

    return svg(draw, (10, 3.2))


def sensitivity(tables: dict[str, pd.DataFrame]) -> str:
    """What quantizing a layer alone costs, measured and predicted, by layer, a panel a variant.

    Args:
        tables: variant to a table with the columns layer, first_order_kl and, where it was measured, one_layer_kl.
    """
    lines = {
        "one_layer_kl": ("measured, one layer on", VARIANT_COLOURS["student"], "-"),
        "first_order_kl": ("predicted, first order", VARIANT_COLOURS["ptq"], "--"),
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axis, costs in zip(axes, tables.values(), strict=True):
            for column, (label, colour, style) in lines.items():
                if column in costs:
                    axis.plot(costs["layer"], costs[column], color=colour, label=label, ls=style, marker=".")
            axis.set_yscale("log")
        _finish(axes, [*tables], "KL, nats a token")

    return svg(draw, (10, 3.2))


def plan(curve: pd.DataFrame, average: float, predicted: float) -> str:
    """Predicted loss of uniform bits and of plans, and the plan that was asked for.

    Args:
        curve: columns bits, uniform and plan. average, predicted: bits a weight and KL of the plan.
    """

    def draw(figure: Figure) -> None:
        axis: Axes = figure.subplots()
        axis.plot(curve["bits"], curve["uniform"], color="#8c8c8c", marker="o", label="the same bits everywhere")
        axis.plot(curve["bits"], curve["plan"], color="#4c78a8", marker="o", label="plans of that average")
        axis.plot([average], [predicted], color="#b01e3b", marker="D", ls="", label="the plan")
        axis.set(xlabel="bits a quantized weight, on average", ylabel="predicted KL, nats a token", yscale="log")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return svg(draw, (10, 3.2))


def training(log: pd.DataFrame) -> str:
    """KL to the teacher by step, the gradient's norm with the learning rate, and its parts by role."""
    norms = [column for column in log.columns if column.startswith("gradient_norm.") and log[column].any()]

    def draw(figure: Figure) -> None:
        kl_axis, norm_axis, role_axis = figure.subplots(1, 3)
        kl_axis.plot(log["step"], log["kl"], color="#b01e3b", label="KL to the teacher")
        kl_axis.plot(log["step"], log["kl"].rolling(10, min_periods=1).mean(), color="#b01e3b", lw=2.4, alpha=0.4)
        kl_axis.set(
            xlabel="step",
            ylabel="nats a token",
            title="KL (thick: mean of 10 steps)",
            ylim=(0, None),
        )
        norm_axis.plot(log["step"], log["gradient_norm"], color="#4c78a8")
        norm_axis.set(
            xlabel="step",
            ylabel="gradient norm before clipping",
            title="Gradient and learning rate",
            ylim=(0, None),
        )
        rate = norm_axis.twinx()
        rate.plot(log["step"], log["lr"], color="#8c8c8c", ls="--")
        rate.set_ylabel("learning rate (dashed)")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rate.grid(False)
        rate.spines["right"].set_visible(True)
        for column in norms:
            role, smooth = column.rpartition(".")[2], log[column].rolling(10, min_periods=1).mean()
            role_axis.plot(log["step"], smooth, color=COLOURS[role], label=role, lw=2 if role in ("v", "o") else 1.2)
        role_axis.set(xlabel="step", title="Gradient by role (mean of 10 steps)", yscale="log" if norms else "linear")
        if norms:
            role_axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return svg(draw, (12, 3.4))


def _finish(axes: Sequence[Axes], titles: list[str], label: str) -> None:
    """Titles, labels and whole layers under panels by layer, and the legend of the fullest one beside the last."""
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel(label)
    fullest = max(axes, key=lambda axis: len(axis.lines))
    axes[-1].legend(*fullest.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    """What `draw` draws on an empty figure of a size in inches, as SVG text to put into a page."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def alone(picture: str) -> str:
    """A picture as a file of its own, which is read on any background."""
    return picture.replace("<svg ", '<svg style="background: white" ', 1)
