"""By layer, the shapes of weights and inputs beside what quantizing it alone costs: do they tell the dear layers?"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report import plots
from pipeline.signals.table import FLOAT, by_layer

STATISTICS = {"kurtosis": "kurtosis", "std": "standard deviation"}
TENSORS = {"weight": ("weights", "#9467bd"), "input": ("inputs", "#54a24b")}
MEASURED = "one_layer_kl"
LEAST = 3  # layers, of fewer a rank correlation says nothing


def by_tensor(table: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """Mean over a layer's linears in the float model: a row a layer, a column a tensor of TENSORS."""
    columns = {tensor: by_layer(table, FLOAT, tensor, statistic).set_index("layer").mean(axis=1) for tensor in TENSORS}
    return pd.DataFrame(columns).sort_index()


def picture(table: pd.DataFrame, costs: Mapping[str, pd.DataFrame]) -> str:
    """A panel a statistic, and one of the measured costs of each variant; empty where none was measured.

    Args:
        table: of analyze. costs: of each variant, as `signals.table.layers`.
    """
    measured = _measured(costs)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(STATISTICS) + 1)
        for axis, (statistic, title) in zip(axes, STATISTICS.items(), strict=False):
            for tensor, values in by_tensor(table, statistic).items():
                label, colour = TENSORS[str(tensor)]
                axis.plot(values.index, values, color=colour, label=label, marker=".")
            axis.set(title=title, yscale="log")
        for variant, cost in measured.items():
            axes[-1].plot(cost.index, cost, color=plots.VARIANT_COLOURS[variant], label=variant, marker=".")
        axes[-1].set(title="KL, the layer quantized", yscale="log")
        marks = [mark for axis in (axes[0], axes[-1]) for mark in axis.get_lines()]
        axes[-1].legend(handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        for axis in axes:
            axis.set_xlabel("layer")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    return plots.svg(draw, (10, 3.0)) if measured else ""


def note(table: pd.DataFrame, costs: Mapping[str, pd.DataFrame]) -> str:
    """The caption, with the rank correlation over layers of each statistic with the cost."""
    ranks = []
    for variant, cost in _measured(costs).items():
        both = {
            f"{TENSORS[str(tensor)][0]}' {title}": pd.concat([values, cost], axis=1).dropna().rank()
            for statistic, title in STATISTICS.items()
            for tensor, values in by_tensor(table, statistic).items()
        }
        known = [f"{name} {_correlation(ranked):.2f}" for name, ranked in both.items() if len(ranked) >= LEAST]
        ranks += [f" Rank correlation with the KL of {variant}: {', '.join(known)}."] if known else []
    return (
        "Float model, mean over a layer's linears, beside the KL to the teacher with the weights of that layer alone "
        f"quantized.{''.join(ranks)}"
    )


def _correlation(ranked: pd.DataFrame) -> float:
    return float(ranked.iloc[:, 0].corr(ranked.iloc[:, 1]))


def _measured(costs: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """The cost of each layer, of the variants whose cost was measured."""
    return {
        variant: layers.set_index("layer")[MEASURED] for variant, layers in costs.items() if MEASURED in layers.columns
    }
