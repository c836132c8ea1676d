"""One part of a model, run again and again with something in it changed: what of its parameters lies along its stream.

A point is what a norm reads, by name and number of call, or the part's output (OUTPUT). The norms give what they gave
at first, so that a change stays where it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.calibration.norm_layers import is_norm

STRAY = 1e-2  # share of a change that rounding may make, and no more is allowed
PUSHES = (1.0, 30.0)  # sizes of a change, as a share of the parameter's own: a router may not feel the smaller one
OUTPUT = ("", 0)


@dataclass(frozen=True)
class Side:
    """A dimension of a parameter that lies along the residual stream."""

    parameter: str
    dim: int


@dataclass
class Stream:
    """writers: what lies along the stream on the side of what it gives. readers: of each norm. posts: norms whose
    output goes into the stream. problems: what there is that is none of these."""

    writers: list[Side] = field(default_factory=list)
    readers: dict[str, list[Side]] = field(default_factory=dict)
    posts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Stream") -> None:
        """Take in what was found in another part of the model."""
        self.writers += other.writers
        self.posts += other.posts
        self.problems += other.problems
        for norm, sides in other.readers.items():
            self.readers.setdefault(norm, []).extend(sides)

    def moved(self, old: str, new: str) -> "Stream":
        """The same of another layer of the same kind, by the layers' names."""

        def name(of: str) -> str:
            return new + of.removeprefix(old)

        def sides(of: list[Side]) -> list[Side]:
            return [replace(side, parameter=name(side.parameter)) for side in of]

        readers = {name(norm): sides(reading) for norm, reading in self.readers.items()}
        return Stream(sides(self.writers), readers, [name(norm) for norm in self.posts])


class Probe:
    """A part of a model that `run` runs, whose stream is `width` wide; a context, within which norms are held."""

    def __init__(self, run: Callable[[], Tensor], part: nn.Module, width: int, prefix: str = "") -> None:
        self.run, self.width = run, width
        self.norms = {
            module: f"{prefix}.{name}".removeprefix(".")
            for name, module in part.named_modules()
            if is_norm(module, weightless=True)
        }
        self.own = {
            f"{name}.{parameter}" for norm, name in self.norms.items() for parameter, _ in norm.named_parameters()
        }
        self.generator = torch.Generator().manual_seed(0)
        self.made: dict[tuple[str, int], Tensor] = {}
        self.nudged: tuple[str, Tensor] = "", torch.zeros(width)
        self.stream: set[tuple[str, int]] = {OUTPUT}

    def __enter__(self) -> "Probe":
        self.points: dict[tuple[str, int], Tensor] = {}
        self.handles = [norm.register_forward_hook(self._hold) for norm in self.norms]
        try:
            self.base = self._points(self.run)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hold(self, norm: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor | None:
        """Keep what a norm reads, and let it give what it gave at first."""
        if not isinstance(out, Tensor) or out.shape[-1] != self.width or not args or args[0].shape != out.shape:
            return None
        name = self.norms[norm]
        key = name, sum(point == name for point, _ in self.points)
        self.points[key] = args[0].clone()
        made = self.made.setdefault(key, out.clone())
        return made + self.nudged[1].to(made) if name == self.nudged[0] else made.clone()

    def _points(self, run: Callable[[], Tensor]) -> dict[tuple[str, int], Tensor]:
        self.points = {}
        output = run().clone()
        return {**self.points, OUTPUT: output}

    def _vector(self) -> Tensor:
        return torch.randn(self.width, generator=self.generator)

    def _changes(self, run: Callable[[], Tensor]) -> dict[tuple[str, int], Tensor]:
        """What changes at each point, where anything does; NaN where the points are others."""
        now = self._points(run)
        if now.keys() != self.base.keys() or any(now[key].shape != self.base[key].shape for key in now):
            return {OUTPUT: torch.full_like(self.base[OUTPUT], torch.nan)}
        return {key: now[key] - self.base[key] for key in now if not torch.equal(now[key], self.base[key])}

    def direct(self, run: Callable[[Tensor], Tensor], ends: bool = False) -> list[str]:
        """Find the points that are the stream, from a run whose stream has a vector added; what else reads it.

        ends: the output is no stream.
        """
        push = self._vector().to(self.base[OUTPUT]) * self.base[OUTPUT].square().mean().sqrt()
        changes = self._changes(lambda: run(push))
        self.stream = {key for key, change in changes.items() if _is_along(change, push)}
        others = {key for key in changes if key not in self.stream}
        where = sorted({f"before {masked(name)}" if name else "in what it gives" for name, _ in others})
        problems = [f"something other than a norm reads the stream, as is seen {', '.join(where)}"] if others else []
        if OUTPUT not in self.stream and not ends and not problems:
            problems.append("a layer does not add to what it reads")
        return problems

    def sides(self, parameters: dict[str, Tensor]) -> Stream:
        """What of the parameters, by name, writes and reads; and the norms between writers and the stream."""
        stream = Stream(posts=[norm for norm in dict.fromkeys(self.norms.values()) if self._is_post(norm)])
        verdicts: dict[tuple[str, int], str | None] = {}
        unknown: list[tuple[str, int]] = []
        for name, parameter in parameters.items():
            if name in self.own:
                continue
            for dim in [dim for dim, size in enumerate(parameter.shape) if size == self.width]:
                verdict = self._verdict(parameter, dim, stream.posts)
                if verdict is None:
                    unknown.append((name, dim))
                else:
                    verdicts[name, dim] = verdict
        for name, dim in unknown:  # an expert that no token chose, say: as its like are
            alike = {v for (other, d), v in verdicts.items() if d == dim and masked(other) == masked(name)}
            verdicts[name, dim] = alike.pop() if len(alike) == 1 else ""
        for name, dim in [(n, d) for n, p in parameters.items() for d in range(p.ndim) if verdicts.get((n, d))]:
            verdict = verdicts[name, dim]
            if verdict == "writes":
                stream.writers.append(Side(name, dim))
            else:
                stream.readers.setdefault(str(verdict), []).append(Side(name, dim))
        return stream

    def _is_post(self, norm: str) -> bool:
        push = self._vector()
        self.nudged = norm, push
        changes = self._changes(self.run)
        self.nudged = "", push
        return any(key in self.stream and _is_along(change, push) for key, change in changes.items())

    def _verdict(self, parameter: Tensor, dim: int, posts: list[str]) -> str | None:
        """ "writes", the norm that it reads, "" for neither, or None where nothing depends on the parameter."""
        push = self._vector()
        changes = self._pushed(parameter, dim, push, PUSHES[-1])
        if not changes:
            return None
        ends = {key for key in changes if key in self.stream or key[0] in posts}
        if ends and all(_is_along(change, push) for change in changes.values()):
            return "writes"
        for norm in [name for name in dict.fromkeys(name for name, _ in self.made) if name not in posts]:
            rows = torch.cat([made.flatten(0, -2) for (name, _), made in self.made.items() if name == norm])
            for size in PUSHES if parameter.ndim > 1 else ():
                control = self._size(self._pushed(parameter, dim, push, size))
                if control > 0:
                    if self._size(self._pushed(parameter, dim, _across(push, rows), size)) <= STRAY * control:
                        return norm
                    break
        return ""

    def _pushed(self, parameter: Tensor, dim: int, push: Tensor, size: float) -> dict[tuple[str, int], Tensor]:
        """What changes with multiples of a vector [width], drawn at random, added to a parameter along a dimension."""
        kept = parameter.clone()
        shape = [-1 if d == dim else 1 for d in range(parameter.ndim)]
        others = [1 if d == dim else n for d, n in enumerate(parameter.shape)]
        multiples = torch.randn(others, generator=torch.Generator().manual_seed(1))
        try:
            parameter += (push.view(shape) * multiples).to(kept) * (size * kept.square().mean().sqrt().clamp(min=1e-6))
            return self._changes(self.run)
        finally:
            parameter.copy_(kept)

    def _size(self, changes: dict[tuple[str, int], Tensor]) -> float:
        return sum(float(change.norm() / self.base[key].norm()) for key, change in changes.items())


def _is_along(change: Tensor, push: Tensor) -> bool:
    """Whether a change [..., width] is a multiple of a vector [width] at every token, but for rounding."""
    if change.shape[-1:] != push.shape or not bool(change.isfinite().all()):
        return False
    push = push.to(change)
    along = (change @ push / push.dot(push))[..., None] * push
    return bool((change - along).norm() <= STRAY * change.norm())


def _across(push: Tensor, rows: Tensor) -> Tensor:
    """The part of a vector [width] that is at right angles to all rows [tokens, width]."""
    basis = torch.linalg.svd(rows.double(), full_matrices=False)
    span = basis.Vh[1e-9 * basis.S[0] < basis.S]
    across = push.double()
    for _ in range(2):
        across = across - span.T @ (span @ across)
    return across.to(push.dtype)


def masked(name: str) -> str:
    """A name with `*` for every number in it: what is alike has the same."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
