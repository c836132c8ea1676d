"""What changed from one version to another: knobs, code, data from outside, artifacts, library versions, machines."""

from dataclasses import dataclass
from typing import Any

from pipeline.audit.versions import Version

KNOB, CODE, DATA, ARTIFACT, LIBRARY, MACHINE = "knob", "code", "data", "artifact", "library", "machine"
HASH = 8  # digits of an md5 that are shown
PINS = 3  # libraries that a line names
RAN_WITH = ("libraries", "knobs", "code")  # of a stage's record; the rest is what it ran on


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
        kind: knob, code, data (from outside), artifact, library, or machine (what stages ran on).
        what: its name or path. before, after: its value, version or md5; empty where it was not there.
        stages: of a file, those that read it; of an artifact, the one that makes it; of a knob, those that read it; of
            a library, those that depend on it; of a machine, those that ran on it.
    """

    kind: str
    what: str
    before: str
    after: str
    stages: tuple[str, ...] = ()


def changes(before: Version, after: Version) -> list[Change]:
    """All that differs between two versions, kind by kind. Files and artifacts are as the stages last ran with them."""
    return [
        *_knobs(before, after),
        *_code(before, after),
        *_differing(ARTIFACT, _outs(before), _outs(after)),
        *_differing(LIBRARY, _pins(before), _pins(after)),
        *_machines(before, after),
    ]


def summary(differences: list[Change]) -> str:
    """The changes in a line: knobs with their values, the stages whose code differs, what else."""
    named = [c for c in differences if c.kind == KNOB]
    pins = [c for c in differences if c.kind == LIBRARY]
    parts = [f"{c.what}: {c.before or 'absent'} -> {c.after or 'absent'}" for c in named + pins[:PINS]]
    if len(pins) > PINS:
        parts.append(f"{len(pins) - PINS} more pinned libraries")
    parts += [f"{c.what}: {c.before} -> {c.after} ({_some_of(c.stages)})" for c in differences if c.kind == MACHINE]
    for kind, label in ((CODE, "code of"), (DATA, "data of")):
        stages = dict.fromkeys(stage.partition("@")[0] for c in differences if c.kind == kind for stage in c.stages)
        if stages:
            parts.append(f"{label} {', '.join(stages)}")
    outs = [c.what for c in differences if c.kind == ARTIFACT]
    if outs and not parts:
        parts.append(f"artifacts alone: {', '.join(outs)}")
    return "; ".join(parts) or "nothing"


Entries = dict[str, tuple[str, tuple[str, ...]]]  # name -> value, stages


def _differing(kind: str, one: Entries, other: Entries) -> list[Change]:
    differences = []
    for name in dict.fromkeys([*one, *other]):
        (before, first), (after, second) = one.get(name, ("", ())), other.get(name, ("", ()))
        if before != after:
            differences.append(Change(kind, name, before, after, tuple(dict.fromkeys([*first, *second]))))
    return differences


def _knobs(before: Version, after: Version) -> list[Change]:
    def entries(version: Version) -> Entries:
        readers: dict[str, list[str]] = {}
        for stage in version.lock.stages.values():
            for knob in stage.knobs:
                readers.setdefault(knob, []).append(stage.name)
        return {knob: (_text(value), tuple(readers.get(knob, ()))) for knob, value in version.knobs.items()}

    return _differing(KNOB, entries(before), entries(after))


def _code(before: Version, after: Version) -> list[Change]:
    """Files that a stage read which no stage makes, where the same stage read something else before; by file."""
    readers: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys([*before.lock.stages, *after.lock.stages]):
        first, second = before.lock.stages.get(name), after.lock.stages.get(name)
        if first is None or second is None:
            continue  # what a new stage makes is among the artifacts
        one, other = before.lock.code(first), after.lock.code(second)
        for path in dict.fromkeys([*one, *other]):
            hashes = one.get(path, "")[:HASH], other.get(path, "")[:HASH]
            if hashes[0] != hashes[1]:
                readers.setdefault((path, *hashes), []).append(name)
    return [
        Change(DATA if path.startswith("data/") else CODE, path, old, new, tuple(stages))
        for (path, old, new), stages in sorted(readers.items())
    ]


def _outs(version: Version) -> Entries:
    stages = version.lock.stages.values()
    return {path: (md5[:HASH], (stage.name,)) for stage in stages for path, md5 in stage.made.items()}


def _pins(version: Version) -> Entries:
    stages = version.lock.stages.values()
    return {
        library: (pin, tuple(stage.name for stage in stages if library in stage.pins))
        for library, pin in version.pins.items()
    }


def _machines(before: Version, after: Version) -> list[Change]:
    """What stages of both versions ran on, where it differs; each difference once, with its stages."""
    stages_by_difference: dict[tuple[str, str, str], list[str]] = {}
    for stage in before.environments.keys() & after.environments.keys():
        one, other = machine(before.environments[stage]), machine(after.environments[stage])
        for what in dict.fromkeys([*one, *other]):
            values = one.get(what, "none"), other.get(what, "none")
            if values[0] != values[1]:
                stages_by_difference.setdefault((what, *values), []).append(stage)
    return [Change(MACHINE, *what, tuple(sorted(stages))) for what, stages in sorted(stages_by_difference.items())]


def machine(environment: dict[str, Any]) -> dict[str, str]:
    """A stage's record of what it ran on, as text by name; what it ran with is told elsewhere."""
    facts = {key.replace("_", " "): value for key, value in environment.items() if key not in RAN_WITH}
    return {key: ", ".join(value) if isinstance(value, list) else str(value) for key, value in facts.items()}


def _some_of(stages: tuple[str, ...]) -> str:
    return ", ".join(stages[:PINS]) + (f" and {len(stages) - PINS} more" if len(stages) > PINS else "")


def _text(value: Any) -> str:
    """A knob's value as it is shown; one that is empty is not taken for one that is not there."""
    return '""' if value == "" else str(value)
