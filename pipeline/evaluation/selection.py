"""Which tasks evaluate asks, and whether their items are sound, before any model is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.evaluation import needs, schemas
from pipeline.evaluation.made import table as made
from pipeline.evaluation.schemas import Row
from pipeline.evaluation.tasks import GROUPS, TASKS
from pipeline.knobs.names import unknown

AUTO: Literal["auto"] = "auto"
SEED = 0  # of made items: whatever the seed of a run, it is asked the same
SHOWN = 20  # problems


def selected(
    groups: Sequence[str], names: Sequence[str] | Literal["auto"], folder: str | Path | None, limit: int, items: int
) -> list[str]:
    """The names of the tasks that are asked, in the order of the table.

    Args:
        groups: of GROUPS. names: of TASKS; AUTO: all of the groups that the source has, and the made ones, but
            those to which a model writes its answers.
        folder: of JSON lines files; None for the hub.
        limit: items of a task that is not made; 0 for all. items: of a made one; 0 for its own number.

    Raises:
        ValueError: a name is unknown or of no group that is asked, a task is not in the source, or needs what is not
            installed, a row is malformed, or items are too few for a standard error: all of them.
    """
    problems = [unknown("group", group, GROUPS) for group in groups if group not in GROUPS]
    if names == AUTO:
        of_groups = [name for name, task in TASKS.items() if task.group in groups and not task.generates]
        chosen = [name for name in of_groups if has(name, folder)]
    else:
        chosen = [name for name in TASKS if name in names]
        problems += [problem for name in dict.fromkeys(names) if (problem := _refused(name, groups))]
    for name in chosen:
        problems += needs.missing(name) + problems_of(name, folder, limit, items)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        lines = "\n  ".join(problems[:SHOWN] + more)
        raise ValueError(f"evaluate.groups, evaluate.tasks, evaluate.benchmarks:\n  {lines}")
    return chosen


def has(name: str, folder: str | Path | None) -> bool:
    """Whether a source has a task: the hub, or a folder. Made ones need neither."""
    if name in made.MADE:
        return True
    return bool(TASKS[name].hub) if folder is None else _file(folder, name).is_file()


def check_folder(folder: str | Path, tasks: Sequence[str]) -> None:
    """Raises:
    ValueError: a task's file is missing, has fewer than two items or a malformed line: all, with file and line.
    """
    selected(GROUPS, tasks, folder, 0, 0)


def rows_of(name: str, folder: str | Path | None, items: int) -> list[Row]:
    """The rows of a selected task; none of one from the hub."""
    if name in made.MADE:
        return made_rows(name, items)
    return [] if folder is None else [schemas.row_of(line) for line in _lines(_file(folder, name))]


def made_rows(name: str, items: int) -> list[Row]:
    """The items of a made task; the same each time.

    Raises:
        ValueError: there are not so many that differ.
    """
    try:
        return [dict(row) for row in made.make(name, SEED, items or made.MADE[name].items)]
    except ValueError as error:
        raise ValueError(f"evaluate.items: {name}: {error}; ask for fewer") from None


def problems_of(name: str, folder: str | Path | None, limit: int, items: int) -> list[str]:
    """What is wrong with a task's items, as far as that is known before they are loaded."""
    if name in made.MADE:
        try:
            rows = made_rows(name, items)
        except ValueError as error:
            return [str(error)]
        if _groups(rows, name) < 2:
            return [f"evaluate.items: {len(rows)} of {name} are one cluster, so accuracy has no standard error; more"]
        if (levels := TASKS[name].compares) and len(set.intersection(*_clusters_of(rows, levels))) < 2:
            return [
                f"evaluate.items: {len(rows)} of {name} hold one pair, whose difference has no standard error; more"
            ]
        return []
    if folder is None:
        hub = TASKS[name].hub
        return [] if hub else [f"evaluate.tasks: {name} is not on the hub; set evaluate.source to folder"]
    file = _file(folder, name)
    if not file.is_file():
        return [f"{file} does not exist; leave {name} out of evaluate.tasks, or put it there"]
    return _problems_in(file, name, limit) + _unlike(name, folder)


def _refused(name: str, groups: Sequence[str]) -> str:
    """Why a task that was named is not asked; empty: it is."""
    if name not in TASKS:
        return f"evaluate.tasks: {unknown('task', name, TASKS)}"
    group = TASKS[name].group
    return "" if group in groups else f"evaluate.tasks: {name} is of {group}, which evaluate.groups leaves out"


def _file(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"{name}.jsonl"


def _lines(file: Path) -> list[str]:
    """JSON allows Unicode's other line ends."""
    return file.read_text(encoding="utf-8").rstrip("\n").split("\n")


def _problems_in(file: Path, name: str, limit: int) -> list[str]:
    task, lines = TASKS[name], _lines(file)
    if lines == [""]:
        return [f"{file} is empty"]
    problems = []
    if len(lines) == 1:
        problems.append(f"{file} has one item, which leaves accuracy without a standard error; give it more")
    for number, line in enumerate(lines, 1):
        if problem := schemas.malformed(line, task.schema, task.optional):
            problems.append(f"{file}, line {number}: {problem}")
    if problems:
        return problems
    rows = [schemas.row_of(line) for line in lines]
    without = [number for number, row in enumerate(rows, 1) if task.cluster and task.cluster not in row]
    if 0 < len(without) < len(rows):
        return [f"{file}, line {without[0]}: lacks the field {task.cluster!r}, which others have"]
    if _groups(rows[: limit or None], name) < 2:
        what = f"all items that are asked have one {task.cluster!r}" if task.cluster else "one item is asked"
        return [f"{file}: {what}, which leaves accuracy without a standard error; raise evaluate.limit"]
    return []


def _unlike(name: str, folder: str | Path) -> list[str]:
    """Whether its items stand row by row beside those that it is compared with."""
    task = TASKS[name]
    other = _file(folder, task.against) if task.against else None
    if other is None or not other.is_file():
        return []
    here, there = (len(_lines(file)) for file in (_file(folder, name), other))
    return [] if here == there else [f"{_file(folder, name)} has {here} rows, {other} {there}; the same, row by row"]


def _clusters_of(rows: Sequence[Row], levels: Sequence[str]) -> list[set[int]]:
    """The clusters of each of some levels of a made task."""
    return [{row["cluster"] for row in rows if row["level"] == level} for level in levels]


def _groups(rows: Sequence[Row], name: str) -> int:
    """How many of them stand alone, or together."""
    cluster = TASKS[name].cluster
    return len({row.get(cluster, i) for i, row in enumerate(rows)})
