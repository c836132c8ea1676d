"""Pictures of scores: accuracy by task, KL against megabytes, KL by position."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from pipeline.report import plots

OTHERS = ("#54a24b", "#9467bd", "#8c8c8c", "#c49c6b", "#72b7b2", "#6b5b95", "#000000")  # what is no variant
IN_A_ROW = 8  # tasks
LETTERS = 14  # of a task's name in a line
SPARE = 1.06  # of a legend's width, as a reader's font may be wider


def tasks(summary: dict[str, float], names: list[str], variants: tuple[str, ...]) -> str:
    """Accuracy of each task, a bar a variant, with standard errors; so many tasks a row."""
    parts = [names[i : i + IN_A_ROW] for i in range(0, len(names), IN_A_ROW)]

    def draw(figure: Figure) -> None:
        for axis, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
            bars(axis, part)

    def bars(axis: Axes, names: list[str]) -> None:
        width = 0.8 / len(variants)
        for i, variant in enumerate(variants):
            heights = [100 * summary[f"task.{name}.{variant}"] for name in names]
            errors = [100 * summary[f"task.{name}.{variant}.stderr"] for name in names]
            at = [x + (i - (len(variants) - 1) / 2) * width for x in range(len(names))]
            axis.bar(
                at,
                heights,
                width * 0.92,
                yerr=errors,
                color=plots.VARIANT_COLOURS[variant],
                label=variant,
                error_kw={"lw": 0.8},
            )
        axis.set_xticks(range(len(names)), [_broken(name) for name in names])
        axis.set_ylabel("accuracy, %")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return plots.svg(draw, (10, 3.2 * len(parts)))


def _broken(name: str) -> str:
    """A long name in lines."""
    return "\n".join(textwrap.wrap(name.replace("_", "_ "), LETTERS)).replace("_ ", "_")


def sizes(points: Sequence[tuple[str, float, float]], teacher: float) -> str:
    """KL to the teacher against megabytes, a mark a model, its numbers in the legend.

    Args:
        points: name, bytes of the weights and KL (nats a token) of each; the variants by their names, which have their
            colours. teacher: bytes of its weights; its KL is nothing.
    """

    def draw(figure: Figure) -> None:
        axis: Axes = figure.subplots()
        for i, (name, stored, kl) in enumerate(points):
            own = name in plots.VARIANT_COLOURS
            colour, mark = (plots.VARIANT_COLOURS[name], "o") if own else (OTHERS[i % len(OTHERS)], "D")
            label = f"{name}: {stored / 1e6:.3g} MB, KL {kl:.3g}"
            axis.plot([stored / 1e6], [kl], marker=mark, ms=9 if own else 6, ls="", color=colour, label=label)
        colour, label = plots.VARIANT_COLOURS["teacher"], f"teacher: {teacher / 1e6:.3g} MB"
        axis.axvline(teacher / 1e6, color=colour, lw=1, ls="--", label=label)
        axis.set(xlabel="MB on disk", ylabel="KL to the teacher, nats a token")
        axis.set_xscale("log")
        _plain_ticks(axis.xaxis)
        if all(kl > 0 for _, _, kl in points):
            axis.set_yscale("log")
            _plain_ticks(axis.yaxis)
        legend = figure.legend(loc="outside lower left", frameon=False)
        figure.draw_without_rendering()
        needed = SPARE * legend.get_window_extent().width / figure.dpi
        figure.set_figwidth(max(figure.get_figwidth(), needed))

    return plots.svg(draw, (6.4, 3.2 + 0.22 * (len(points) + 1)))


def _plain_ticks(axis: Axis) -> None:
    """Numbers without exponents on a logarithmic axis, at 1, 2 and 5 of each decade."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())


def by_position(tables: dict[str, pd.DataFrame]) -> str:
    """KL to the teacher by bands of positions, a line a variant and text.

    Args:
        tables: variant to a table with the columns text, end (the band's last position), kl and error; of the texts
            the first in each table has full lines.
    """

    def draw(figure: Figure) -> None:
        axis: Axes = figure.subplots()
        ends = sorted({int(end) for table in tables.values() for end in table["end"]})
        for variant, table in tables.items():
            for text, part in table.groupby("text"):
                first = text == table["text"].iloc[0]
                at, style = [ends.index(end) for end in part["end"]], "-" if first else "--"
                colour, label = plots.VARIANT_COLOURS[variant], f"{variant}, {text}"
                axis.errorbar(
                    at, part["kl"], part["error"], color=colour, label=label, ls=style,
                    marker="o", ms=4, lw=1.6, elinewidth=0.8,
                )  # fmt: skip
        axis.set_xticks(range(len(ends)), [f"to {end:,}" for end in ends])
        axis.set(xlabel="tokens before", ylabel="KL to the teacher, nats a token")
        axis.set_ylim(bottom=0)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return plots.svg(draw, (10, 3.2))
