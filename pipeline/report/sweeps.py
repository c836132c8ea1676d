"""The report's section on sweeps: the table and the curves of each that has results, as the sweep left them."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report import comparison, plots

FILES = ("points.csv", "curves.csv", "table.csv")


def sections(folder: Path) -> list[dict[str, Any]]:
    """What page.html shows under Sweeps, for each sweep with results in the folder, by name.

    Raises:
        ValueError: files are no results of a sweep; all of them are named.
    """
    found, problems = [], []
    for results in sorted(file.parent for file in folder.glob("*/table.csv")):
        try:
            found.append(_section(results))
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{results}: {error}")
    if problems:
        remedy = "`python -m pipeline.flow sweep FILE.yaml --only-report` writes them anew from what is finished"
        raise ValueError("\n  ".join([f"these are no results of a sweep; {remedy}:", *problems]))
    return found


def _section(results: Path) -> dict[str, Any]:
    points, curves, table = (_read(results / name) for name in FILES)
    metrics = [*dict.fromkeys(table["metric"])]
    lines = curves.merge(points[["experiment", "setting"]], on="experiment", validate="many_to_one")
    columns = [str(column) for column in curves.columns.drop(["experiment", "step"])]
    return {
        "name": results.name,
        "rows": comparison.rows(table),
        "note": comparison.note(table, len(points.dropna(subset=metrics)), len(points)),
        "plot": plots.overlay(lines, columns),
        "caption": f"{', '.join(columns)} by step: a colour a setting, a thin line a seed, a thick one their mean.",
    }


def _read(file: Path) -> pd.DataFrame:
    """A table in which an empty cell is missing, and nothing else: settings may be called null or nan."""
    table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"setting": str, "experiment": str})
    return table.assign(verdict=table["verdict"].fillna("")) if "verdict" in table else table
