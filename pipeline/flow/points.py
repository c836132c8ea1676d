"""The points of a sweep: what each changes in params.yaml, checked there before any work."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.flow import knobs
from pipeline.knobs.names import unknown


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
class Space:
    """What a definition says of its points, of the right types; see pipeline/flow/definition.py for the meaning."""

    grid: dict[Any, Any]
    listed: list[Any]
    seeds: list[int]
    seed_knob: str
    shared: dict[str, Any]
    baseline: dict[str, Any]

    def points(self, params_file: Path, problems: list[str]) -> tuple[Point, ...]:
        """The points, setting by setting; all that is wrong with them is added to `problems`."""
        settings, base = self._settings(problems), knobs.read(params_file)
        swept = [*dict.fromkeys(knob for setting in settings for knob in setting)]
        absent = knobs.missing(base, [*swept, *self.shared, *self.baseline, self.seed_knob])
        problems += absent.values()
        for knob in [self.seed_knob, *swept]:
            if knob in self.shared or (knob == self.seed_knob and knob in swept):
                where = "set" if knob in self.shared else "the settings"
                problems.append(f"{knob}: stands in {where} and is swept besides")
        points = self._points(base, settings, [knob for knob in swept if knob not in absent], absent)
        problems += knobs.refused(params_file, base, {f"{p.label()} seed={p.seed}": p.overrides for p in points})
        if not absent:
            problems += _alike(points) + self._no_baseline(points, swept)
        return tuple(points)

    def _settings(self, problems: list[str]) -> list[dict[str, Any]]:
        """The grid's combinations, then the settings that are listed."""
        lists = {str(knob): values for knob, values in self.grid.items() if isinstance(values, list) and values}
        problems += [
            f"grid: {knob}: expected a list of values, one at least, got {values!r}"
            for knob, values in self.grid.items()
            if str(knob) not in lists
        ]
        listed = [entry for entry in self.listed if isinstance(entry, dict) and entry]
        problems += [
            f"points[{i}]: expected a mapping of knobs to values, got {entry!r}"
            for i, entry in enumerate(self.listed)
            if entry not in listed
        ]
        if not self.grid and not self.listed:
            problems.append("grid, points: one of them must say what to sweep")
        combined = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
        return (combined if lists else []) + [{str(knob): value for knob, value in entry.items()} for entry in listed]

    def _points(
        self, base: dict[str, Any], settings: list[dict[str, Any]], swept: list[str], absent: Iterable[str]
    ) -> list[Point]:
        """The points, less the knobs that there are not."""
        points = []
        for own in settings:
            overrides = {knob: value for knob, value in {**self.shared, **own}.items() if knob not in absent}
            changed = knobs.changed(base, overrides)
            setting = {knob: knobs.value(changed, knob) for knob in swept}
            for seed in self.seeds or [0]:  # none: they were ill-typed, and the rest is still to be checked
                seed_override = {} if self.seed_knob in absent else {self.seed_knob: seed}
                points.append(Point(setting, seed, {**overrides, **seed_override}))
        return points if swept else []

    def _no_baseline(self, points: list[Point], swept: list[str]) -> list[str]:
        """What is wrong with the baseline, where there is one: it must name swept knobs, and match points."""
        problems = [f"baseline: {unknown('swept knob', knob, swept)}" for knob in self.baseline if knob not in swept]
        if points and not problems and not any(p.setting | self.baseline == p.setting for p in points):
            there = ", ".join(dict.fromkeys(p.label() for p in points))
            problems.append(f"baseline: {knobs.label(self.baseline)} matches no point; there are: {there}")
        return problems


def _alike(points: list[Point]) -> list[str]:
    """Settings that stand there twice."""
    occurrences = Counter((point.label(), point.seed) for point in points)
    twice = dict.fromkeys(label for (label, _), count in occurrences.items() if count > 1)
    return [f"grid, points: the setting {label} stands there twice" for label in twice]
