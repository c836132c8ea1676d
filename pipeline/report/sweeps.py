"""The report's section on sweeps: the table and the curves of each that has results, as the sweep left them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report import comparison, overlays

Picture = tuple[str, str]  # SVG, caption

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
    return {
        "name": results.name,
        "rows": comparison.rows(table),
        "note": comparison.note(table, len(points.dropna(subset=metrics)), len(points)),
        "pictures": [*_differences(points, table), *_curves(points, curves, table)],
    }


def _differences(points: pd.DataFrame, table: pd.DataFrame) -> Iterator[Picture]:
    """How far each setting is from the baseline, where there is one."""
    places = _places(points, table)
    shown = table[table["setting"].isin([*places]) & (table["pairs"] > 0)]
    if shown.empty:
        return
    mine, groups = zip(*(places[setting] for setting in shown["setting"]), strict=True)
    shown = shown.assign(mine=mine, group=groups)
    yield overlays.differences(shown), "Paired differences from the baseline, dashed, with their 95 % intervals."


def _curves(points: pd.DataFrame, curves: pd.DataFrame, table: pd.DataFrame) -> Iterator[Picture]:
    """The training curves, a picture for each combination of the knobs that the baseline leaves open."""
    places = _places(points, table)
    lines = curves.merge(points[["experiment", "setting"]], on="experiment", validate="many_to_one")
    lines = lines.assign(
        setting=[places[setting][0] for setting in lines["setting"]],
        group=[places[setting][1] for setting in lines["setting"]],
    )
    columns = [str(column) for column in curves.columns.drop(["experiment", "step"])]
    colours = overlays.shades([*dict.fromkeys(places[setting][0] for setting in points["setting"])])
    note = f"{', '.join(columns)} by step: a colour a setting, a thin line a seed, a thick one their mean."
    for group in dict.fromkeys(lines["group"]):
        picture = overlays.overlay(lines[lines["group"] == group], columns, colours)
        yield picture, f"{group}: {note}" if group else note


def _places(points: pd.DataFrame, table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """For each setting of the table, its values of the knobs that the baseline names, and those of the others.

    Without a baseline all knobs are among the first.
    """
    metrics = [*dict.fromkeys(table["metric"])]
    *knobs, _ = points.columns[2 : points.columns.get_loc(metrics[0])]  # the last is the seed's
    baseline = points[points["setting"].isin(table.loc[table["verdict"] == "baseline", "setting"])]
    named = [knob for knob in knobs if baseline.empty or baseline[knob].nunique() == 1]
    others = [knob for knob in knobs if knob not in named]
    found = {}
    for row in ({str(key): value for key, value in row.items()} for row in points.to_dict("records")):
        mine = str(row[named[0]]) if len(named) == 1 else _text(row, named)
        found[row["setting"]] = mine, _text(row, others)
        if others:
            found[comparison.over_all(row, named)] = mine, overlays.OVER_ALL
    return found


def _text(row: dict[str, Any], knobs: list[str]) -> str:
    return " ".join(f"{knob.rpartition('.')[2]}={row[knob]}" for knob in knobs)


def _read(file: Path) -> pd.DataFrame:
    """A table in which an empty cell is missing, and nothing else: settings may be called null or nan."""
    table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"setting": str, "experiment": str})
    return table.assign(verdict=table["verdict"].fillna("")) if "verdict" in table else table
