"""What dvc.lock says of a version: what each stage ran with, what it made, and which of it no longer fits together."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.artifacts.inputs import differing, flat, under
from pipeline.audit.trees import Tree, md5
from pipeline.knobs import yaml_1_2

LOCK, PARAMS, PINS = "dvc.lock", "params.yaml", "versions.yaml"
ENVIRONMENT = "--environment"  # before the path of a stage's record of what it ran with, in its command
SHOWN = 4  # reasons for which a stage is stale


@dataclass(frozen=True)
class Stage:
    """A stage as it was run: its command, the md5 of what it read and of what it made, the knobs that it read and the
    names, of knobs or whole sections, by which it asked for them, the versions of the libraries that it depends on, and
    where it wrote down what it ran with (empty: nowhere)."""

    name: str
    cmd: str
    deps: dict[str, str]
    outs: dict[str, str]
    knobs: dict[str, Any]
    asked: tuple[str, ...] = ()
    pins: dict[str, str] = field(default_factory=dict)
    environment: str = ""

    @property
    def made(self) -> dict[str, str]:
        """Its outputs but for the record of what it ran with."""
        return {path: digest for path, digest in self.outs.items() if path != self.environment}

    def changed_knobs(self, now: dict[str, Any]) -> list[str]:
        """Which of all knobs, by their dotted names, it would read otherwise now: with another value, or one more."""
        return differing(self.knobs, under(self.asked, now))


@dataclass(frozen=True)
class Link:
    """Something in a chain of artifacts: its depth, its path, the md5 it was read with, and the stage that makes it."""

    depth: int
    path: str
    md5: str
    maker: Stage


@dataclass(frozen=True)
class Lock:
    """All stages of a version, by name, and which of them makes what."""

    stages: dict[str, Stage]
    _makers: dict[str, Stage | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def maker(self, path: str) -> Stage | None:
        """The stage that makes a path, or a file in it, or the folder that it lies in."""
        if path not in self._makers:
            made = (stage for stage in self.stages.values() if any(overlap(path, out) for out in stage.outs))
            self._makers[path] = next(made, None)
        return self._makers[path]

    def sources(self, stage: Stage) -> list[Stage]:
        """The stages that made something which a stage read."""
        makers = (self.maker(dep) for dep in stage.deps)
        return list({maker.name: maker for maker in makers if maker is not None}.values())

    def code(self, stage: Stage) -> dict[str, str]:
        """Of what a stage read, that which no stage makes: its code, and data from outside."""
        return {path: digest for path, digest in stage.deps.items() if self.maker(path) is None}

    def stale(self, tree: Tree) -> dict[str, list[str]]:
        """Why what a stage made is not what the version would make, for each stage of which that is so.

        A stage is stale if code or data from outside, a knob, or the pinned version of a library differs from what it
        ran with; if what it read is not what the stage that makes it made; or if such a stage is stale itself.
        """
        knobs, pins = (mapping(tree, file) for file in (PARAMS, PINS))
        stale: dict[str, list[str]] = {}
        for stage in self._in_order():
            reasons = []
            for path, digest in stage.deps.items():
                maker = self.maker(path)
                if maker is None:
                    if (md5(tree, path) or tracked(tree, path)) != digest:
                        reasons.append(f"{path} has changed")
                elif path in maker.outs and maker.outs[path] != digest:
                    reasons.append(f"{path} is not what {maker.name} made")
                elif maker.name in stale:
                    reasons.append(f"{maker.name} is stale")
            reasons += [f"the knob {knob} has changed" for knob in stage.changed_knobs(knobs)]
            reasons += [
                f"{library} is pinned to {pins.get(library, 'nothing')}, it ran with {pin}"
                for library, pin in stage.pins.items()
                if pins.get(library) != pin
            ]
            if reasons:
                stale[stage.name] = list(dict.fromkeys(reasons))
        return stale

    def chain(self, path: str) -> Iterator[Link]:
        """What a path was made from, down to what needs nothing that a stage makes; depth first.

        What has been told is not told again further down.
        """
        maker = self.maker(path)
        if maker is not None:
            yield from self._chain(path, maker.outs.get(path, ""), maker, 0, set())

    def _chain(self, path: str, digest: str, maker: Stage, depth: int, told: set[str]) -> Iterator[Link]:
        yield Link(depth, path, digest, maker)
        if maker.name in told:
            return
        told.add(maker.name)
        for dep, dep_digest in maker.deps.items():
            below = self.maker(dep)
            if below is not None:
                yield from self._chain(dep, dep_digest, below, depth + 1, told)

    def _in_order(self) -> list[Stage]:
        """The stages, each after those that make what it reads."""
        order: dict[str, Stage] = {}

        def take(stage: Stage) -> None:
            for dep in stage.deps:
                maker = self.maker(dep)
                if maker is not None and maker.name != stage.name and maker.name not in order:
                    take(maker)
            order.setdefault(stage.name, stage)

        for stage in self.stages.values():
            take(stage)
        return list(order.values())


def load(tree: Tree) -> Lock:
    """Read a version's dvc.lock; one without has no stages.

    Raises:
        ValueError: it is damaged.
    """
    content = tree.read(LOCK)
    try:
        entries = (parsed(content) if content else {}).get("stages", {})
        return Lock({name: _stage(name, entry) for name, entry in entries.items()})
    except (yaml_1_2.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{LOCK} is damaged ({str(error).splitlines()[0]}); {tree.remedy(LOCK)}") from None


def parsed(content: bytes) -> Any:
    """YAML as DVC reads it."""
    return yaml_1_2.parse(content)


def mapping(tree: Tree, file: str) -> dict[str, Any]:
    """A file of knobs or pins, by dotted names; empty where there is none.

    Raises:
        ValueError: it is no mapping.
    """
    content = _parsed_once(tree.read(file) or b"{}")
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a mapping, got {content!r}; {tree.remedy(file)}")
    return flat(content)


@lru_cache(maxsize=64)
def _parsed_once(content: bytes) -> Any:
    """Many versions have the same knobs and pins; what it gives is not to be changed."""
    return parsed(content)


def tracked(tree: Tree, path: str) -> str | None:
    """The md5 of data that `dvc add` has taken out of Git, as its .dvc file holds it; None where there is none."""
    content = parsed(tree.read(f"{path}.dvc") or b"{}")
    outs = content.get("outs") if isinstance(content, dict) else None
    return next((str(out["md5"]) for out in outs or () if isinstance(out, dict) and "md5" in out), None)


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    deps, outs = ({item["path"]: str(item["md5"]) for item in entry.get(kind, [])} for kind in ("deps", "outs"))
    asked, pins = (entry.get("params", {}).get(file, {}) for file in (PARAMS, PINS))
    cmd = command(entry["cmd"])
    record = re.search(rf"{ENVIRONMENT} (\S+)", cmd)
    return Stage(name, cmd, deps, outs, flat(asked), tuple(asked), flat(pins), record[1] if record else "")


def command(cmd: str | list[str]) -> str:
    """A stage's command, or its commands, one a line."""
    return cmd if isinstance(cmd, str) else "\n".join(cmd)


def overlap(one: str, other: str) -> bool:
    """Whether one path is the other, or lies in it."""
    a, b = one.split("/"), other.split("/")
    return a[: len(b)] == b[: len(a)]


def some(reasons: list[str]) -> str:
    """The first few reasons for which a stage is stale, and how many there are besides."""
    return "; ".join(reasons[:SHOWN]) + (f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else "")
