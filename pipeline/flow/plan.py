"""What each point's result depends on, and so its name, whether it is finished, and which stages it shares.

A stage's key is what DVC's run cache knows a stage by (command, params, hashes of the deps), but with the key of the
stage that makes a dep in place of its hash, so that it is known before anything runs. A point's name holds a digest of
the keys of all that its target needs: what has run under this name need not run again, whatever else has changed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.flow import knobs
from pipeline.flow.definition import Sweep
from pipeline.flow.points import Point

DIGEST = 8  # hexadecimal digits of the key in a name


@dataclass(frozen=True)
class Run:
    """A point as a DVC experiment.

    Attributes:
        name: of the experiment.
        keys: of the target and of each stage that it needs, by the stage's name.
    """

    point: Point
    name: str
    keys: dict[str, str]


@dataclass(frozen=True)
class Shared:
    """Stages that several runs need in the same state, and the runs that need all of them."""

    name: str
    stages: list[str]
    overrides: dict[str, Any]
    runs: list[Run]


def runs(sweep: Sweep, checkout: Path) -> list[Run]:
    """The points as experiments.

    Args:
        checkout: of the commit whose code the points run; its params.yaml is changed.

    Raises:
        ValueError: DVC cannot read dvc.yaml or knows no such target, the stages need files that the commit has not,
            make no scores, curves or answers, or are the same for several points: all of it, a line each.
    """
    params_file, planned_runs, problems = checkout / "params.yaml", list[Run](), list[str]()
    outs: dict[str, str] = {}
    before = params_file.read_bytes()
    for point in sweep.points:
        knobs.write(params_file, point.overrides)
        keys, outs = _keys(checkout, sweep.target, problems)
        params_file.write_bytes(before)
        wanted = [("scores", sweep.scores)] if sweep.scored else []
        wanted += [("curves", sweep.curves)] if sweep.curves else []
        wanted += [("items", sweep.items), ("reference", sweep.reference)] if sweep.items else []
        for entry, path in wanted:
            if keys and not any(_overlap(path, out) for out in outs):
                problems.append(
                    f"{entry}: {path} is no output of {sweep.target} or of what it needs: {', '.join(outs)}"
                )
        if not keys:
            break
        slug = knobs.slug({**point.setting, sweep.seed_knob: point.seed})
        planned_runs.append(Run(point, f"{sweep.name}-{slug}-{_digest(keys)[:DIGEST]}", keys))
    problems += _same(planned_runs, sweep.target) + _other_references(sweep, planned_runs, outs)
    if problems:
        problems = [*dict.fromkeys(problems)]
        raise ValueError(f"{sweep.file} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return planned_runs


def sources(checkout: Path, target: str) -> list[str]:
    """The files and folders in the project's tree that the target's result depends on, dvc.yaml and params.yaml too."""
    with chdir(checkout), Repo() as repo:  # DVC takes a target as seen from here
        stages = _collected(repo, target)
        outs = [out.def_path for stage in stages for out in stage.outs]
        deps = [dep.def_path for stage in stages for dep in stage.deps]
    inside = [path for path in deps if not Path(path).is_absolute() and ".." not in Path(path).parts]
    return sorted({"dvc.yaml", *(path for path in inside if not any(_overlap(path, out) for out in outs))})


def shared(pending: Iterable[Run]) -> list[Shared]:
    """The stages that at least two runs need in the same state, for each set of runs that need the same ones."""
    pending = list(pending)
    counts = Counter(item for run in pending for item in run.keys.items())
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in pending:
        common = frozenset(item for item in run.keys.items() if counts[item] > 1)
        if common:
            groups.setdefault(common, []).append(run)
    shared_groups = []
    for common, members in groups.items():
        name = f"shared-{_digest(sorted(common))[:DIGEST]}"
        shared_groups.append(Shared(name, sorted(stage for stage, _ in common), members[0].point.overrides, members))
    return shared_groups


def _keys(checkout: Path, target: str, problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The keys of the target and of all that it needs, and which stage makes each output; both empty if DVC refuses."""
    keys: dict[str, str] = {}
    try:
        with chdir(checkout), Repo() as repo:  # DVC takes a target as seen from here
            stages = _collected(repo, target)
            makers = {out.def_path: stage for stage in stages for out in stage.outs}
            for stage in stages:
                _key(stage, makers, keys, problems)
    except DvcException as error:
        problems.append(f"target: {error}")
        return {}, {}
    return keys, {path: stage.addressing for path, stage in makers.items()}


def _collected(repo: Repo, target: str) -> list[Any]:
    """The stages that a target needs, each once; it may name several stages, with spaces between."""
    stages = [stage for name in target.split() for stage in repo.stage.collect(name, with_deps=True)]
    return [*{stage.addressing: stage for stage in stages}.values()]


def _key(stage: Any, makers: dict[str, Any], keys: dict[str, str], problems: list[str]) -> str:
    name = stage.addressing
    if name in keys:
        return keys[name]
    inputs: list[Any] = []
    for dep in stage.deps:
        needed = [maker for path, maker in makers.items() if _overlap(dep.def_path, path)]
        if needed:
            inputs.append([dep.def_path, [_key(maker, makers, keys, problems) for maker in needed]])
            continue
        try:
            inputs.append([dep.def_path, dep.get_hash().value])
        except FileNotFoundError:
            problems.append(f"{name}: its dep {dep.def_path} is not in HEAD, which the points run; commit it")
        except DvcException as error:
            what = "params" if isinstance(dep, ParamsDependency) else dep.def_path
            problems.append(f"{name}: {what}: {error}")
    outs = [out.def_path for out in stage.outs]
    keys[name] = _digest([stage.cmd, sorted(inputs, key=repr), sorted(outs)])
    return keys[name]


def _same(planned_runs: list[Run], target: str) -> list[str]:
    """Points between which nothing differs that their target depends on."""
    alike: dict[str, list[str]] = {}
    for run in planned_runs:
        alike.setdefault(_digest(run.keys), []).append(run.name)
    return [f"{target} does not depend on what tells these apart: {', '.join(n)}" for n in alike.values() if n[1:]]


def _other_references(sweep: Sweep, planned_runs: list[Run], outs: dict[str, str]) -> list[str]:
    """Whether what all points are compared with differs from one to another."""
    makers = [stage for out, stage in outs.items() if sweep.reference and _overlap(sweep.reference, out)]
    if len({run.keys[stage] for run in planned_runs for stage in makers}) <= len(makers):
        return []
    return [
        f"reference: {sweep.reference} depends on what the points vary; vary nothing that {', '.join(makers)} reads"
    ]


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other, or lies in it."""
    a, b = Path(one).parts, Path(other).parts
    return a[: len(b)] == b[: len(a)]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
