"""The tidy table of signals, and what is read from it: one statistic by layer, a column a role.

A row is a statistic of one tensor of one linear (of a part of it, where it is fused) in one variant. tensor is what it
is of: weight, input (before it is quantized), output, cache (keys under the role k, values under v, after rotary
embedding and before they are quantized), or layer (the whole decoder layer).
"""

from pathlib import Path

import pandas as pd

from pipeline.knobs.freezing import ROLES

COLUMNS = ["variant", "layer", "role", "name", "tensor", "statistic", "value"]
FLOAT = "float"  # the variant that the others are compared with
SHAPES = ("kurtosis", "std", "absmax", "outliers")

FORWARD_AND_BACKWARD = {  # file name: tensor and statistic
    "gradient_norm": ("weight", "gradient_norm_sq"),
    "output_gradient_norm": ("output", "gradient_norm_sq"),
    "mean_square": ("output", "mean_square"),
    "mean_abs": ("output", "mean_abs"),
}
AGAINST_FLOAT = {
    "sqnr": ("output", "sqnr_db"),
    "weight_sqnr": ("weight", "sqnr_db"),
    "gradient_cosine": ("weight", "gradient_cosine"),
    "first_order": ("weight", "first_order"),
}
TENSORS = {f"{tensor}_{shape}": (tensor, shape) for tensor in ("weight", "input", "cache") for shape in SHAPES}


def curves(variant: str) -> dict[str, tuple[str, str]]:
    """The curves that a variant has: file name to tensor and statistic."""
    return {**FORWARD_AND_BACKWARD, **({} if variant == FLOAT else AGAINST_FLOAT), **TENSORS}


def by_layer(table: pd.DataFrame, variant: str, tensor: str, statistic: str) -> pd.DataFrame:
    """One statistic as a wide table: a row a layer, a column a role, the mean where a layer has several of a role.

    Without any such rows (a model that has no keys and values), it has a column `layer` and no rows.
    """
    chosen = table[(table.variant == variant) & (table.tensor == tensor) & (table.statistic == statistic)]
    wide = chosen.pivot_table(index="layer", columns="role", values="value", aggfunc="mean")
    return wide[[role for role in ROLES if role in wide.columns]].rename_axis(columns=None).reset_index()


def layers(table: pd.DataFrame, variant: str) -> pd.DataFrame:
    """What is known of whole layers: `layer` and a column a statistic; no rows where nothing is."""
    chosen = table[(table.variant == variant) & (table.tensor == "layer")]
    return chosen.pivot(index="layer", columns="statistic", values="value").rename_axis(columns=None).reset_index()


def write(table: pd.DataFrame, variants: list[str], folder: Path) -> None:
    """The table as signals.parquet, and each curve as {name}_{variant}.csv."""
    table.to_parquet(folder / "signals.parquet", index=False)
    for variant in variants:
        files = {name: by_layer(table, variant, *what) for name, what in curves(variant).items()}
        files["sensitivity"] = layers(table, variant)
        for name, wide in files.items():
            if not (wide.empty and name == "sensitivity"):
                write_csv(wide, folder / f"{name}_{variant}.csv")


def write_csv(wide: pd.DataFrame, file: Path) -> None:
    """A table with six significant digits, without its index."""
    wide.to_csv(file, index=False, float_format="%.6g")
