"""The page of sweeps: table and curves of each that was made from the model at hand, worked out from points.csv.

table.csv and table.md are for other readers; what the page shows is made of the points, so an edit of the table does
not reach it (`python -m pipeline.audit verify` names it, and points that are not what their commits hold).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report import comparison, overlays, sweep_files
from pipeline.report.sweep_files import UNKNOWN, SweepFiles

Picture = tuple[str, str]  # SVG, caption
Size = tuple[str, float, float]  # what it is, bytes of its weights, its KL to the teacher

SHOWN = 4  # files of changed code that are named
ANY = ""  # the teacher of a reader who wants all sweeps


def results(folder: Path, teacher: str = ANY) -> tuple[list[SweepFiles], list[str]]:
    """The sweeps with results in the folder, by name: those made from a teacher, and the names of the others.

    Args:
        teacher: as `sweep_files.teacher_of` names it.

    Raises:
        ValueError: files are no results of a sweep; all of them are named.
    """
    sweeps, others, problems = [], [], []
    for where in sorted(file.parent for file in folder.glob("*/points.csv")):
        try:
            files = sweep_files.load(where)
            made_from = {*files.finished["teacher"]}
            if teacher in (ANY, *made_from) and len(made_from) == 1:
                sweeps.append(files)
            else:
                others.append(where.name)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{where}: {error}")
    if problems:
        remedy = "`python -m pipeline.flow sweep FILE.yaml --only-report` writes them anew from what is finished"
        raise ValueError("\n  ".join([f"these are no results of a sweep; {remedy}:", *problems]))
    return sweeps, others


def sections(sweeps: list[SweepFiles], root: Path, curves: bool = True) -> list[dict[str, Any]]:
    """What sweeps.html shows of each sweep.

    Args:
        root: of the project, whose code is compared with that of the points. curves: draw the training curves too,
            which takes seconds for a large sweep.
    """
    return [
        {
            "name": files.folder.name,
            "rows": comparison.rows(files.table),
            "note": comparison.note(files.table, len(files.finished), len(files.points)),
            "origin": origin(files, root),
            "pictures": [*_differences(files.table), *(_curves(files) if curves else ())],
        }
        for files in sweeps
    ]


def origin(files: SweepFiles, root: Path) -> str:
    """By which commits the points were made, and how many of them by code that has changed since, or is not known."""
    points = files.finished.to_dict("records")
    commits = dict.fromkeys(str(point["commit"])[:10] for point in points if point["commit"] != UNKNOWN)
    told = f"Commits of the points: {', '.join(commits)}." if commits else "The commits of the points are not known."
    changed: Counter[str] = Counter()
    stale = unknown = 0
    for point in points:
        code = files.code({str(name): value for name, value in point.items()})
        differing = sweep_files.changed(code, root)
        changed.update(differing)
        stale, unknown = stale + bool(differing), unknown + (not code)
    if stale:
        named = ", ".join(path for path, _ in changed.most_common(SHOWN))
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        told += f" Made by code that has changed since: {stale} of {len(points)} points ({named}{more})."
    if unknown:
        told += f" Made by code that was not noted: {unknown} of {len(points)} points; today's may give others."
    return told


def sizes(sweeps: list[SweepFiles], read: str) -> tuple[list[Size], int]:
    """The points that have a size and a KL, each a setting, and how many were left out, as their KL was measured on
    another text.

    Args:
        read: a digest of what the scores at hand were read from.
    """
    shown, others = dict[str, Size](), 0
    for files in sweeps:
        if {"kl", "weight_bytes"} <= {*files.lineage["metrics"]}:
            for point in files.finished.to_dict("records"):
                if point["read"] == read != UNKNOWN:
                    label = f"{files.folder.name}: {point['setting']}"
                    shown.setdefault(label, (label, float(point["weight_bytes"]), float(point["kl"])))
                else:
                    others += 1
    return [*shown.values()], others


def _differences(table: pd.DataFrame) -> Iterator[Picture]:
    """How far each setting is from the baseline, where there is one."""
    shown = table[table["pairs"] > 0]
    if not shown.empty:
        yield overlays.differences(shown), "Paired differences from the baseline, dashed, with their 95 % intervals."


def _curves(files: SweepFiles) -> Iterator[Picture]:
    """The training curves, a picture for each combination of the knobs that the baseline leaves open."""
    columns = [str(column) for column in files.curves.columns.drop(["experiment", "step"])]
    if files.curves.empty or not columns:
        return
    places = files.table[["setting", "compared", "others"]].drop_duplicates()
    settings = files.points[["experiment", "setting"]]
    lines = files.curves.merge(settings, on="experiment", validate="many_to_one")
    lines = lines.merge(places, on="setting", validate="many_to_one")
    colours = overlays.shades([*dict.fromkeys(places["compared"])])
    note = f"{', '.join(columns)} by step: a colour a setting, a thin line a seed, a thick one their mean."
    for others in dict.fromkeys(lines["others"]):
        picture = overlays.overlay(lines[lines["others"] == others], columns, colours)
        yield picture, f"{others}: {note}" if others else note
