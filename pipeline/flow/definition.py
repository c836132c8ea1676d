"""What to sweep: a small YAML file, checked whole, with every point's knobs, before any work.

    name: ablation                       # results go to a folder of this name beside the file
    grid: {distill.freeze: [none, ov]}   # knob -> values; every combination is a setting
    points: [{distill.freeze: mlp}]      # settings that the grid does not hold
    seeds: [0, 1, 2]                     # each setting runs with each of them
    seed_knob: distill.seed              # the knob that they are given to
    set: {distill.steps: 224}            # knobs that all points share
    baseline: {distill.freeze: none}     # what the other settings are compared with, by pairs that agree in the seed
                                         # and in every knob that is not named here
    target: evaluate@student             # what DVC brings up to date
    metrics: [log_perplexity, kl]        # names in the scores, each with `<name>.stderr` beside it where it has one
    scores: data/scores/student.json
    curves: data/student/log.csv         # a row a step
    columns: [kl, gradient_norm]         # of it, to lay over each other; `gradient_norm.o` and the like come along

`seeds`, `metrics` and one of `grid` and `points` are needed; the rest is as above if it is left out (`name` is the
file's, `set` and `baseline` are empty).
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.flow import knobs
from pipeline.names import unknown

NAME = r"[a-z0-9]+(-[a-z0-9]+)*"  # what Git, DVC and Prefect all take
WANTED: dict[type, str] = {dict: "a mapping of knobs to values", list: "a list", str: "text", int: "whole numbers"}


@dataclass(frozen=True)
class Point:
    """One experiment: a setting with a seed.

    Attributes:
        setting: value of each swept knob, those too that the point leaves as params.yaml has them.
        overrides: what the point changes in params.yaml, the seed among it.
    """

    setting: dict[str, Any]
    seed: int
    overrides: dict[str, Any]

    def label(self) -> str:
        """The setting as a person reads it: one knob's value, or several as freeze=ov lr=0.0001."""
        return knobs.label(self.setting)


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

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.file.parent / self.name

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
            return value
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
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: expected a mapping with seeds, metrics, and grid or points, got {tree!r}")
    reader = _Reader(tree)
    name = reader.take("name", str, file.stem)
    grid = reader.take("grid", dict, {})
    listed = reader.take("points", list, [])
    seeds = reader.take("seeds", list, entries=int)
    seed_knob = reader.take("seed_knob", str, "distill.seed")
    shared = reader.take("set", dict, {})
    baseline = reader.take("baseline", dict, {})
    sweep = {
        "target": reader.take("target", str, "evaluate@student"),
        "metrics": reader.take("metrics", list, entries=str),
        "scores": reader.take("scores", str, "data/scores/student.json"),
        "curves": reader.take("curves", str, "data/student/log.csv"),
        "columns": reader.take("columns", list, ["kl", "gradient_norm"], entries=str),
    }
    problems = reader.problems
    problems += [unknown("entry", key, reader.taken) for key in tree if key not in reader.taken]
    if not re.fullmatch(NAME, name):
        problems.append(f"name: expected small letters, digits and single dashes, got {name!r}")
    settings = _settings(grid, listed, problems)
    base = knobs.read(params_file)
    swept = list(dict.fromkeys(knob for setting in settings for knob in setting))
    named = dict.fromkeys([*map(str, grid), *swept, *map(str, shared), *map(str, baseline), seed_knob])
    problems += knobs.missing(base, [*named])
    for knob in [seed_knob, *swept]:
        if knob in shared or (knob == seed_knob and knob in swept):
            problems.append(f"{knob}: stands in {'set' if knob in shared else 'the settings'} and is swept besides")
    points: list[Point] = []
    if not problems:
        points = _points(base, settings, swept, seeds, seed_knob, shared)
        problems += knobs.refused(params_file, base, {f"{p.label()} seed={p.seed}": p.overrides for p in points})
        problems += _alike(points)
        problems += _no_baseline(points, baseline, swept)
    if problems:
        raise ValueError(f"{file} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return Sweep(file, name, tuple(points), seed_knob, baseline, **sweep)


def _settings(grid: dict[Any, Any], listed: list[Any], problems: list[str]) -> list[dict[str, Any]]:
    """The grid's combinations, then those that are listed."""
    for knob, values in grid.items():
        if not isinstance(values, list) or not values:
            problems.append(f"grid: {knob}: expected a list of values, one at least, got {values!r}")
    for i, entry in enumerate(listed):
        if not isinstance(entry, dict) or not entry:
            problems.append(f"points[{i}]: expected a mapping of knobs to values, got {entry!r}")
    if problems:
        return []
    if not grid and not listed:
        problems.append("grid, points: one of them must say what to sweep")
    combined = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    return combined + listed


def _points(
    base: dict[str, Any],
    settings: list[dict[str, Any]],
    swept: list[str],
    seeds: list[int],
    seed_knob: str,
    shared: dict[str, Any],
) -> list[Point]:
    points = []
    for own in settings:
        changed = knobs.changed(base, {**shared, **own})
        setting = {knob: knobs.value(changed, knob) for knob in swept}
        points += [Point(setting, seed, {**shared, **own, seed_knob: seed}) for seed in seeds]
    return points


def _alike(points: list[Point]) -> list[str]:
    """Settings that stand there twice."""
    seen = Counter((point.label(), point.seed) for point in points)
    twice = dict.fromkeys(label for (label, _), count in seen.items() if count > 1)
    return [f"grid, points: the setting {label} stands there twice" for label in twice]


def _no_baseline(points: list[Point], baseline: dict[str, Any], swept: list[str]) -> list[str]:
    """What is wrong with the baseline, where there is one: it must name swept knobs, and match points."""
    problems = [f"baseline: {unknown('swept knob', knob, swept)}" for knob in baseline if knob not in swept]
    if not problems and not any(p.setting | baseline == p.setting for p in points):
        there = ", ".join(dict.fromkeys(p.label() for p in points))
        problems.append(f"baseline: {knobs.label(baseline)} matches no point; there are: {there}")
    return problems
