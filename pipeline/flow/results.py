"""A sweep's results: read from the experiments, and written as points.csv, curves.csv, lineage.json, and the table.

Each point has the commit of its experiment, the digest of the code that it ran, and the model that it was made from
(`pipeline.report.sweep_files`); the table is worked out from the points. The files are tracked by Git and count: a
point that they hold under the name that it has now is finished, also in a clone without its experiment or the cache.
A sweep that keeps answers has one file more, which Git does not track: there a point is finished where it has answers.
"""

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from dvc.api import DVCFileSystem

from pipeline.artifacts import contract
from pipeline.flow import knobs, point_answers
from pipeline.flow.definition import END, Sweep
from pipeline.flow.plan import Run
from pipeline.report import comparison, sweep_files
from pipeline.report.sweep_files import ANSWERS, ORIGIN, REFERENCE, UNKNOWN, Origin

TEACHER = "data/teacher/manifest.json"  # of what a point was made from
READ = "read"  # among the scores: what they were read from
CURVE_ROWS = 400  # of a point's curves at most, evenly spaced: what a picture can show
ERROR = ".stderr"


@dataclass(frozen=True)
class Result:
    """What a point came to: its metrics, each with its standard error where it has one, its curves by step, and where
    they come from; its answers and those of the reference, as `point_answers.read` has them, where they are kept."""

    scores: dict[str, float]
    curves: pd.DataFrame
    origin: Origin = field(default_factory=Origin)
    answers: tuple[pd.DataFrame, pd.DataFrame] | None = None


def read(root: Path, commit: str, sweep: Sweep) -> Result:
    """The result that an experiment holds, out of the DVC cache.

    Raises:
        FileNotFoundError: it is not in the cache any more.
        ValueError: it is there, and lacks metrics, or columns of the curves.
    """
    files = DVCFileSystem(str(root), rev=commit)
    scores = json.loads(files.read_text(sweep.scores)) if sweep.scored else {}
    asked = scores.pop(READ, None)
    curves = _curves(files, sweep)
    scores |= _ends(curves)
    if missing := [name for name in sweep.metrics if name not in scores]:
        there = ", ".join(name for name in scores if not name.endswith(ERROR))
        raise ValueError(f"{sweep.scores} has no {', '.join(missing)}; `metrics` may be: {there}")
    if missing := [name for name in ("step", *sweep.columns) if name not in curves]:
        raise ValueError(
            f"{sweep.curves} has no column {', '.join(missing)}; `columns` may be: {', '.join(map(str, curves))}"
        )
    names = [form for name in sweep.metrics for form in (name, name + ERROR) if form in scores]
    if bad := [name for name in names if not isinstance(scores[name], (int, float)) or not math.isfinite(scores[name])]:
        raise ValueError(f"{sweep.scores}: {', '.join(bad)}: not a finite number")
    origin = _origin(files, commit, sweep.target, asked)
    chosen = [column for column in curves if any(_of(str(column), name) for name in ("step", *sweep.columns))]
    stride = math.ceil(len(curves) / CURVE_ROWS)
    thinned = curves[chosen].iloc[:: max(1, stride)].reset_index(drop=True)
    answers = point_answers.read(files, sweep) if sweep.items else None
    return Result({name: float(scores[name]) for name in names}, thinned, origin, answers)


def _curves(files: DVCFileSystem, sweep: Sweep) -> pd.DataFrame:
    """The curves of a commit; a sweep that trains nothing has none."""
    if not sweep.curves:
        return pd.DataFrame({"step": pd.Series(dtype="int64")})
    return pd.read_csv(io.StringIO(files.read_text(sweep.curves)), float_precision="round_trip")


def _origin(files: DVCFileSystem, commit: str, target: str, read: dict[str, str] | None) -> Origin:
    """Where the result of a commit comes from, as far as the commit tells."""
    lock, manifest = _text(files, "dvc.lock"), _text(files, TEACHER)
    code = sweep_files.source_files(yaml.safe_load(lock), target) if lock else {}
    teacher = sweep_files.teacher_of(json.loads(manifest)) if manifest else UNKNOWN
    return Origin(commit, code, teacher, sweep_files.digest(read) if read else UNKNOWN)


def _text(files: DVCFileSystem, path: str) -> str:
    try:
        return files.read_text(path)
    except FileNotFoundError:
        return ""


def _ends(curves: pd.DataFrame) -> dict[str, float]:
    """The mean of each column over the last quarter of its rows, and its standard error where there are two."""
    if curves.empty:
        return {}
    last_quarter = curves.iloc[-max(1, len(curves) // 4) :]
    means = {f"{END}{column}": mean for column, mean in last_quarter.mean().to_dict().items()}
    if len(last_quarter) < 2:
        return means
    return means | {f"{END}{column}{ERROR}": error for column, error in last_quarter.sem().to_dict().items()}


def recorded(sweep: Sweep) -> dict[str, Result]:
    """The results that the sweep's files hold with all that the definition asks for, by the experiment's name."""
    files = sweep.folder / "points.csv", sweep.folder / "curves.csv"
    if not all(file.is_file() for file in files):
        return {}
    try:
        text = dict.fromkeys(("experiment", *ORIGIN), str)
        points, curves = (pd.read_csv(file, float_precision="round_trip", dtype=text) for file in files)
        lines = {name: part.drop(columns="experiment") for name, part in curves.groupby("experiment", sort=False)}
        lineage = sweep.folder / sweep_files.LINEAGE  # results of before 2026-11-29 have none
        listed = json.loads(lineage.read_text(encoding="utf-8"))["code"] if lineage.is_file() else {}
        results, answers = {}, point_answers.recorded(sweep) if sweep.items else {}
        for row in points.to_dict("records"):
            names = [str(key) for key in row if any(str(key) in (name, name + ERROR) for name in sweep.metrics)]
            scores = {name: float(row[name]) for name in names if pd.notna(row[name])}
            drawn = lines.get(row["experiment"], pd.DataFrame({"step": pd.Series(dtype="int64")}))
            drawn = drawn if drawn.empty else drawn.dropna(axis="columns", how="all")
            known = {name: str(row[name]) if pd.notna(row.get(name)) else UNKNOWN for name in ORIGIN}
            code = listed.get(known["code"], {})
            name = str(row["experiment"])
            mine = (answers[name], answers[REFERENCE]) if {name, REFERENCE} <= {*answers} else None
            whole = {*sweep.metrics} <= {*scores} and {"step", *sweep.columns} <= {*drawn}
            if whole and (mine or not sweep.items):
                origin = Origin(known["commit"], code, known["teacher"], known["read"])
                results[name] = Result(scores, drawn.reset_index(drop=True), origin, mine)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{files[0]} or {files[1].name} is damaged ({error}); remove both, or `git restore` them"
        ) from None
    return results


def write(sweep: Sweep, runs: list[Run], results: dict[str, Result]) -> list[list[str]]:
    """Write the files of a sweep; gives the rows of its table, a header first.

    Args:
        runs: all of the sweep's, in its order. results: of those that are finished, one at least, by name.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    points = _points(sweep, runs, results)
    curves = [results[run.name].curves.assign(experiment=run.name) for run in runs if run.name in results]
    lines = pd.concat(curves, ignore_index=True)
    lines = lines[["experiment", "step", *lines.columns.drop(["experiment", "step"])]]
    table = comparison.compare(points, sweep.knobs, sweep.seed_knob, sweep.metrics, _cells(sweep.baseline))
    kept = {run.name: results[run.name].answers for run in runs if run.name in results}
    if answers := {name: pair for name, pair in kept.items() if pair is not None}:
        (_, reference), *_ = answers.values()
        point_answers.write(sweep.folder, {name: own for name, (own, _) in answers.items()}, reference)
    contract.write_json(sweep.folder / sweep_files.LINEAGE, _lineage(sweep, results))
    _write_csv(sweep.folder / "points.csv", points)
    _write_csv(sweep.folder / "curves.csv", lines)
    _write_csv(sweep.folder / "table.csv", table)
    contract.write_text(sweep.folder / "table.md", comparison.markdown(sweep.name, table, len(results), len(runs)))
    return comparison.rows(table)


def _lineage(sweep: Sweep, results: dict[str, Result]) -> dict[str, Any]:
    """What lineage.json holds."""
    code = [dict(result.origin.code) for result in results.values() if result.origin.code]
    kept = {"items": sweep.items, "answers": contract.sha256(sweep.folder / ANSWERS)} if sweep.items else {}
    return {
        **kept,
        "knobs": sweep.knobs,
        "seed": sweep.seed_knob,
        "metrics": sweep.metrics,
        "baseline": _cells(sweep.baseline),
        "target": sweep.target,
        "scores": sweep.scores if sweep.scored else "",
        "curves": sweep.curves,
        "code": {sweep_files.digest(listing): listing for listing in code},
    }


def _points(sweep: Sweep, runs: list[Run], results: dict[str, Result]) -> pd.DataFrame:
    """A row a point, finished or not; what an unfinished one has not is left empty."""
    metrics = [form for name in sweep.metrics for form in (name, name + ERROR)]
    rows = []
    for run in runs:
        origin = results[run.name].origin.row() if run.name in results else dict.fromkeys(ORIGIN, "")
        row: dict[str, Any] = {"experiment": run.name, **origin, "setting": run.point.label()}
        row |= _cells(run.point.setting) | {sweep.seed_knob: run.point.seed}
        rows.append(row | dict.fromkeys(metrics, math.nan) | (results[run.name].scores if run.name in results else {}))
    points = pd.DataFrame(rows)
    unused = [name for name in metrics if name.endswith(ERROR) and points[name].isna().all()]
    return points.drop(columns=unused)


def _cells(setting: dict[str, Any]) -> dict[str, str]:
    return {knob: knobs.text(value) for knob, value in setting.items()}


def _of(column: str, name: str) -> bool:
    """Whether a column is the one of this name, or a part of it, as gradient_norm.o is of gradient_norm."""
    return column == name or column.startswith(f"{name}.")


def _write_csv(file: Path, table: pd.DataFrame) -> None:
    contract.write_text(file, table.to_csv(index=False, lineterminator="\n"))
