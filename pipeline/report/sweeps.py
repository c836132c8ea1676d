"""The report's section on sweeps: the table and the curves of each that has results, as the sweep left them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report import comparison, overlays

Picture = tuple[str, str]  # SVG, caption

FILES = ("points.csv", "curves.csv", "table.csv")


def sections(folder: Path, curves: bool = True) -> list[dict[str, Any]]:
    """What sweeps.html shows, for each sweep with results in the folder, by name.

    Args:
        curves: draw the training curves too, which takes seconds for a large sweep.

    Raises:
        ValueError: files are no results of a sweep; all of them are named.
    """
    found, problems = [], []
    for results in sorted(file.parent for file in folder.glob("*/table.csv")):
        try:
            found.append(_section(results, curves))
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{results}: {error}")
    if problems:
        remedy = "`python -m pipeline.flow sweep FILE.yaml --only-report` writes them anew from what is finished"
        raise ValueError("\n  ".join([f"these are no results of a sweep; {remedy}:", *problems]))
    return found


def _section(results: Path, curves: bool) -> dict[str, Any]:
    points, lines, table = (_read(results / name) for name in FILES)
    metrics = [*dict.fromkeys(table["metric"])]
    return {
        "name": results.name,
        "rows": comparison.rows(table),
        "note": comparison.note(table, len(points.dropna(subset=metrics)), len(points)),
        "pictures": [*_differences(table), *(_curves(points, lines, table) if curves else ())],
    }


def _differences(table: pd.DataFrame) -> Iterator[Picture]:
    """How far each setting is from the baseline, where there is one."""
    shown = table[table["pairs"] > 0]
    if not shown.empty:
        yield overlays.differences(shown), "Paired differences from the baseline, dashed, with their 95 % intervals."


def _curves(points: pd.DataFrame, curves: pd.DataFrame, table: pd.DataFrame) -> Iterator[Picture]:
    """The training curves, a picture for each combination of the knobs that the baseline leaves open."""
    places = table[["setting", "compared", "others"]].drop_duplicates()
    lines = curves.merge(points[["experiment", "setting"]], on="experiment", validate="many_to_one")
    lines = lines.merge(places, on="setting", validate="many_to_one")
    columns = [str(column) for column in curves.columns.drop(["experiment", "step"])]
    colours = overlays.shades([*dict.fromkeys(places["compared"])])
    note = f"{', '.join(columns)} by step: a colour a setting, a thin line a seed, a thick one their mean."
    for others in dict.fromkeys(lines["others"]):
        picture = overlays.overlay(lines[lines["others"] == others], columns, colours)
        yield picture, f"{others}: {note}" if others else note


def _read(file: Path) -> pd.DataFrame:
    """A table in which an empty cell is missing, and nothing else: settings may be called null or nan."""
    text = dict.fromkeys(("setting", "experiment", "compared", "others"), str)
    table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=text)
    return table.fillna({name: "" for name in ("verdict", "others") if name in table})
