"""Whether the results of sweeps are what their commits hold, and their tables what follows from them."""

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artifacts import contract
from pipeline.audit import locks, numbers
from pipeline.audit.cache import Cache
from pipeline.audit.finding import Finding
from pipeline.audit.recomputed import CLOSE
from pipeline.audit.trees import Commit, Git
from pipeline.report import sweep_files
from pipeline.report.sweep_files import UNKNOWN, SweepFiles

TEACHER = Path("data/teacher")
END = "end."  # before a column of the curves, of whose last quarter the mean is meant
WHOLE = 200  # rows of curves of which none was left out; longer ones are thinned to 200 to 400
SIGNS = 10  # digits of a commit that are shown


def teacher(root: Path) -> str:
    """Which model the project's teacher is; empty where there is none."""
    try:
        return sweep_files.teacher_of(contract.read_json(root / TEACHER / contract.MANIFEST))
    except (OSError, ValueError, AttributeError):
        return ""


def verify(git: Git, folder: Path, cache: Cache) -> tuple[list[Finding], list[str]]:
    """What is wrong with the results of all sweeps in a folder; and what could not be checked, a line each."""
    findings, unchecked = list[Finding](), list[str]()
    for where in sorted(file.parent for file in folder.glob("*/points.csv")):
        name = where.relative_to(git.root).as_posix()
        try:
            files = sweep_files.load(where)
            findings += [*_table(files, name), *_ends(files, name), *_answers(files, name, unchecked)]
            lineage = f"{name}/{sweep_files.LINEAGE}"
            findings += [
                Finding(lineage, f"the files of code {code} are not those that it is the digest of")
                for code in sweep_files.wrong_digests(files)
            ]
            findings += _commits(git, files, name, cache, unchecked)
        except (OSError, ValueError, KeyError, TypeError) as error:
            findings.append(Finding(name, f"these are no results of a sweep: {error}"))
    return findings, unchecked


def _table(files: SweepFiles, name: str) -> Iterator[Finding]:
    """Where table.csv and table.md are not what the points give."""
    expected = files.table
    try:
        text = dict.fromkeys(("setting", "compared", "others", "verdict"), str)
        table = pd.read_csv(files.folder / "table.csv", keep_default_na=False, na_values=[""], dtype=text)
    except (OSError, ValueError) as error:
        yield Finding(f"{name}/table.csv", str(error))
        return
    if [*table] != [*expected] or len(table) != len(expected):
        yield Finding(f"{name}/table.csv", "it has other rows or columns than points.csv gives")
        return
    for here, there in zip(table.to_dict("records"), expected.to_dict("records"), strict=True):
        for column, value in there.items():
            if not _same(here[column], value):
                what = f"{column} of {there['metric']} of {there['setting']}"
                yield Finding(f"{name}/table.csv", f"{what} is {here[column]}, but points.csv gives {value}")
    file = files.folder / "table.md"
    if not file.is_file() or file.read_text(encoding="utf-8") != files.markdown():
        yield Finding(f"{name}/table.md", "it is not what points.csv gives")


def _answers(files: SweepFiles, name: str, unchecked: list[str]) -> Iterator[Finding]:
    """Where the kept answers are not those that were written; adds that they are not at hand, as Git has none."""
    if not (expected := files.lineage.get("answers")):
        return
    file = files.folder / sweep_files.ANSWERS
    if not file.is_file():
        unchecked.append(f"{name}/{sweep_files.ANSWERS}: it is not here")
    elif contract.sha256(file) != expected:
        yield Finding(f"{name}/{sweep_files.ANSWERS}", f"it is not what {sweep_files.LINEAGE} has the sha256 of")


def _ends(files: SweepFiles, name: str) -> Iterator[Finding]:
    """Where a metric that is the end of a curve does not follow from curves of which no row was left out."""
    lines = dict(iter(files.curves.groupby("experiment")))
    for point in files.finished.to_dict("records"):
        mine = lines.get(point["experiment"], pd.DataFrame())
        if not 0 < len(mine) <= WHOLE:
            continue
        last_quarter = mine.iloc[-max(1, len(mine) // 4) :]
        for metric in files.lineage["metrics"]:
            column = metric.removeprefix(END)
            if not metric.startswith(END) or column not in last_quarter:
                continue
            mean = last_quarter[column].mean()
            if not _same(point[metric], float(mean)):
                yield Finding(
                    f"{name}/points.csv",
                    f"{metric} of {point['experiment']} is {point[metric]}, but curves.csv gives {mean}",
                )


def _commits(git: Git, files: SweepFiles, name: str, cache: Cache, unchecked: list[str]) -> Iterator[Finding]:
    """Where points, curves and code are not what the points' commits hold; adds what is not at hand."""
    missing: dict[str, int] = {}
    for point in files.finished.to_dict("records"):
        commit, file = str(point["commit"]), f"{name}/points.csv"
        if commit == UNKNOWN:
            why = "the commits are not known"
        elif not _has(git, commit):
            why = "their commits are not in this clone"
        else:
            lock = locks.parsed(Commit(git, commit).read(locks.LOCK) or b"{}")
            code = sweep_files.source_files(lock, files.lineage.get("target", ""))
            if sweep_files.digest(code) != point["code"]:
                yield Finding(file, f"code of {point['experiment']} is {point['code']}, but its commit has another")
            stages = lock.get("stages", {}).values()
            outs = {out["path"]: str(out["md5"]) for stage in stages for out in stage.get("outs", ())}
            scores = _content(cache, outs, files.lineage.get("scores", ""))
            curves = _content(cache, outs, files.lineage.get("curves", ""))
            yield from _scores(files, point, scores, file)
            yield from _lines(files, point, curves, f"{name}/curves.csv")
            wanted = {"scores": scores, "curves": curves}
            absent = [kind for kind, content in wanted.items() if files.lineage.get(kind) and content is None]
            why = f"their {' and '.join(absent)} are not in the cache" if absent else ""
        if why:
            missing[why] = missing.get(why, 0) + 1
    unchecked += [f"{count} of {len(files.finished)} points of {name}: {why}" for why, count in missing.items()]


def _scores(files: SweepFiles, point: Mapping[Any, Any], content: bytes | None, file: str) -> Iterator[Finding]:
    expected = numbers.read(content) or {}
    for metric in files.lineage["metrics"]:
        for name in (metric, f"{metric}.stderr"):
            if name in point and name in expected and not _same(point[name], expected[name]):
                yield Finding(
                    file, f"{name} of {point['experiment']} is {point[name]}, its commit has {expected[name]}"
                )


def _lines(files: SweepFiles, point: Mapping[Any, Any], content: bytes | None, file: str) -> Iterator[Finding]:
    if content is None:
        return
    mine = files.curves[files.curves["experiment"] == point["experiment"]].drop(columns="experiment")
    whole = pd.read_csv(io.BytesIO(content), float_precision="round_trip").set_index("step")
    for row in mine.to_dict("records"):
        step = row.pop("step")
        if step not in whole.index or not all(_same(value, whole.loc[step, column]) for column, value in row.items()):
            yield Finding(file, f"step {step} of {point['experiment']} is not what its commit has")
            return


def _content(cache: Cache, outs: Mapping[str, str], path: str) -> bytes | None:
    """A file that a stage made, or one in a folder that it made; None where the cache does not have it."""
    for out, md5 in outs.items():
        if path == out:
            file: Path | None = cache.path(md5)
        elif path.startswith(f"{out}/"):
            file = cache.file(md5, path.removeprefix(f"{out}/"))
        else:
            continue
        return file.read_bytes() if file is not None and file.is_file() else None
    return None


def _has(git: Git, commit: str) -> bool:
    try:
        git.run("cat-file", "-e", f"{commit}^{{commit}}")
    except ValueError:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    """Whether two cells are the same: text, numbers to the digits in which numbers are compared, or both missing."""
    if pd.isna(one) or pd.isna(other):
        return bool(pd.isna(one) and (pd.isna(other) or other == "")) or (one == "" and bool(pd.isna(other)))
    if isinstance(one, str) or isinstance(other, str):
        return str(one) == str(other)
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
