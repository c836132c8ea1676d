"""What to sweep: a small YAML file, checked whole, with every point's knobs, before any work.

    name: ablation                       # results go to a folder of this name beside the file
    grid: {distill.freeze: [none, ov]}   # knob -> values; every combination is a setting
    points: [{distill.freeze: mlp}]      # settings that the grid does not hold
    seeds: [0, 1, 2]                     # each setting runs with each of them
    seed_knob: distill.seed              # the knob that they are given to
    set: {distill.steps: 224}            # knobs that all points share
    baseline: {distill.freeze: none}     # what the other settings are compared with, by pairs that agree in the seed
                                         # and in every knob that is not named here
    target: evaluate@student             # what DVC brings up to date; several stages with spaces between
    metrics: [log_perplexity, kl]        # names in the scores, each with `<name>.stderr` beside it where it has one; or
                                         # end.kl: the mean of a column over the last quarter of the curves
    scores: data/scores/student.json
    curves: data/student/log.csv         # a row a step; null where nothing trains
    columns: [kl, gradient_norm]         # of it, to lay over each other; `gradient_norm.o` and the like come along
    items: data/items/ptq                # a folder with an answers.parquet, which is kept of each point
    reference: data/items/teacher        # likewise of the model that all points are compared with, kept once

`seeds`, `metrics` and one of `grid` and `points` are needed; the rest is as above if it is left out (`name` is the
file's, `set` and `baseline` are empty; no answers are kept).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.flow.points import Point, Space
from pipeline.knobs import yaml_1_2
from pipeline.knobs.names import unknown

END = "end."  # before a column of the curves, of whose last quarter the mean is meant
NAME = r"[a-z0-9]+(-[a-z0-9]+)*"  # what Git, DVC and Prefect all take
WANTED: dict[type, str] = {dict: "a mapping of knobs to values", list: "a list", str: "text", int: "whole numbers"}


@dataclass(frozen=True)
class Sweep:
    """A definition, checked; see the module for what the fields mean."""

    file: Path
    name: str
    points: tuple[Point, ...]
    seed_knob: str
    baseline: dict[str, Any]
    target: str
    metrics: list[str]
    scores: str
    curves: str
    columns: list[str]
    items: str = ""
    reference: str = ""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.file.parent / self.name

    @property
    def scored(self) -> bool:
        """Whether any metric is one of the scores; else the target need not make them."""
        return any(not name.startswith(END) for name in self.metrics)

    @property
    def knobs(self) -> list[str]:
        """The swept knobs, in the order in which the file names them."""
        return [*self.points[0].setting]


@dataclass
class _Reader:
    """A mapping whose entries are taken one by one; what is wrong is kept."""

    tree: dict[Any, Any]
    problems: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def take(self, key: str, kind: type, default: Any = None, entries: type | None = None) -> Any:
        """An entry of a kind, or what stands for it where it is missing or wrong; a list's `entries` have a type."""
        self.taken.append(key)
        if key not in self.tree and default is not None:
            return default
        value: Any = self.tree.get(key)
        good = isinstance(value, kind) and (kind is dict or bool(value))
        if good and entries is not None:
            good = all(type(x) is entries for x in value) and len({repr(x) for x in value}) == len(value)
        if good:
            return {str(knob): entry for knob, entry in value.items()} if kind is dict else value
        what = f"{WANTED[kind]}{' of ' + WANTED[entries] + ', none of them twice' if entries else ''}"
        self.problems.append(f"{key}: expected {what}, {f'got {value!r}' if key in self.tree else 'but it is missing'}")
        return kind() if default is None else default


def load(file: Path, params_file: Path = Path("params.yaml")) -> Sweep:
    """Read and check a definition, and each of its points against the params file.

    Raises:
        ValueError: the file is no YAML, has unknown, missing or ill-typed entries, names a knob that params.yaml has
            not, gives one a value that it cannot have, or its baseline is none of its points: all of it, a line each.
    """
    try:
        tree = yaml_1_2.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (yaml_1_2.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: expected a mapping with seeds, metrics, and grid or points, got {tree!r}")
    reader = _Reader(tree)
    trains = tree.get("curves", "") is not None
    if not trains:
        reader.tree = {key: value for key, value in tree.items() if key != "curves"}
    name, problems = reader.take("name", str, file.stem), reader.problems
    space = Space(
        grid=reader.take("grid", dict, {}),
        listed=reader.take("points", list, []),
        seeds=reader.take("seeds", list, entries=int),
        seed_knob=reader.take("seed_knob", str, "distill.seed"),
        shared=reader.take("set", dict, {}),
        baseline=reader.take("baseline", dict, {}),
    )
    measured = {
        "target": reader.take("target", str, "evaluate@student"),
        "metrics": reader.take("metrics", list, entries=str),
        "scores": reader.take("scores", str, "data/scores/student.json"),
        "curves": reader.take("curves", str, "data/student/log.csv"),
        "columns": reader.take("columns", list, ["kl", "gradient_norm"], entries=str),
        "items": reader.take("items", str, ""),
        "reference": reader.take("reference", str, ""),
    }
    problems += _of_answers(measured["items"], measured["reference"])
    if not trains:
        problems += [f"columns: without curves there is none, got {tree['columns']!r}"] if "columns" in tree else []
        ends = [name for name in measured["metrics"] if name.startswith(END)]
        problems += [f"metrics: without curves there is no {', '.join(ends)}"] if ends else []
        measured |= {"curves": "", "columns": []}
    problems += [unknown("entry", key, reader.taken) for key in tree if key not in reader.taken]
    if not re.fullmatch(NAME, name):
        problems.append(f"name: expected small letters, digits and single dashes, got {name!r}")
    points = space.points(params_file, problems)
    if problems:
        raise ValueError(f"{file} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return Sweep(file, name, points, space.seed_knob, space.baseline, **measured)


def _of_answers(items: str, reference: str) -> list[str]:
    """What is wrong with where answers lie: one without the other."""
    if bool(items) == bool(reference):
        return []
    named, absent = ("items", "reference") if items else ("reference", "items")
    return [f"{named}: needs {absent} beside it, as answers are compared in pairs"]
