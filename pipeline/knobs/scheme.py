"""What is quantized and how: weights, activations and KV cache, and what differs for some of the linears.

A scheme is written short, as in W4A8KV4, or long, with every field. Overrides make mixed precision: each names some
linears and says what their weights or activations have instead. Of several that match, the last one counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

HEAD = "lm_head"
SHORT = re.compile(r"W(?P<weights>\d+)(g(?P<group>\d+))?(A(?P<activations>\d+))?(KV(?P<kv>\d+))?")
Observer = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class Weights:
    """Grid of a linear's weight.

    bits: 2 to 8; 0: stays in float. group: input channels that share a scale; 0: all of them, so that an output channel
    has one scale.
    """

    bits: Literal[0, 2, 3, 4, 5, 6, 7, 8]
    symmetric: bool = True
    group: int = 0


@dataclass(frozen=True)
class Activations:
    """Grid of a linear's input.

    bits: 4 to 8, or 16; 0: stays in float. dynamic: a scale a token, found as it comes, instead of a calibrated one a
    tensor. observer: how the static range is found; percentile: share of the values (in percent) that it holds.
    """

    bits: Literal[0, 4, 5, 6, 7, 8, 16]
    symmetric: bool = True
    dynamic: bool = False
    observer: Observer = "minmax"
    percentile: float = 99.99


@dataclass(frozen=True)
class KVCache:
    """Grid of keys and values as a cache stores them, after rotary embedding; scales are dynamic.

    bits: 2 to 8; 0: stays in float. group: values of a token that share a scale, over its key (value) heads one after
    the other; 0: all of them, a scale a token.
    """

    bits: Literal[0, 2, 3, 4, 5, 6, 7, 8]
    symmetric: bool = True
    group: int = 0


@dataclass(frozen=True)
class Override:
    """What the linears that `match` names have instead.

    match: a role (q, k, v, o, gate, up, down), `lm_head`, the last part of a module's name (down_proj), or a pattern of
    the whole name (model.layers.0.*).
    """

    match: str
    weights: Weights | None = None
    activations: Activations | None = None

    def names(self, name: str, role: str) -> bool:
        """Whether it speaks of the linear of this name and role."""
        return self.match == role or fnmatchcase(name, self.match) or self.match == name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Scheme:
    """Weights and inputs of the decoder's linears, the KV cache, and the exceptions. The head is float unless named."""

    weights: Weights
    activations: Activations = Activations(0)
    kv_cache: KVCache = KVCache(0)
    overrides: tuple[Override, ...] = ()

    def of(self, name: str, role: str) -> tuple[Weights, Activations]:
        """Weights and activations of the linear of this name and role."""
        weights, activations = (Weights(0), Activations(0)) if role == HEAD else (self.weights, self.activations)
        for override in self.overrides:
            if override.names(name, role):
                weights = override.weights or weights
                activations = override.activations or activations
        return weights, activations

    def __str__(self) -> str:
        """In words: INT4 per-channel weights, static INT16 activations."""
        parts = []
        w, a, kv = self.weights, self.activations, self.kv_cache
        if w.bits:
            where = f"weights in groups of {w.group}" if w.group else "per-channel weights"
            parts.append(f"{_sign(w.symmetric)}INT{w.bits} {where}")
        kind = "dynamic" if a.dynamic else "static"
        parts.append(f"{_sign(a.symmetric)}{kind} INT{a.bits} activations" if a.bits else "float activations")
        if kv.bits:
            parts.append(
                f"{_sign(kv.symmetric)}INT{kv.bits} KV cache" + (f" in groups of {kv.group}" if kv.group else "")
            )
        if self.overrides:
            parts.append("exceptions for " + ", ".join(override.match for override in self.overrides))
        return ", ".join(parts)

    def unmatched(self, linears: Iterable[tuple[str, str]]) -> list[str]:
        """The overrides' matches that name none of these linears (name, role)."""
        linears = list(linears)
        return [o.match for o in self.overrides if not any(o.names(name, role) for name, role in linears)]


def _sign(symmetric: bool) -> str:
    return "" if symmetric else "asymmetric "


def from_short(text: str) -> Scheme:
    """A scheme written short: W<bits>, g<group> after it, A<bits>, KV<bits>; what is left out is not quantized.

    W4A16KV8: symmetric weights per output channel, static INT16 activations a tensor, KV cache a token. Activations of
    8 bits and fewer are dynamic, a token each, as in LLM-QAT (2305.17888); those of 16 static, as in "Oh! We Freeze"
    (2403.18159).

    Raises:
        ValueError: it is not such a text, or its bits are none that there are.
    """
    match = SHORT.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no scheme; write it as W4, W4A8, W4g128A8KV4, or long, field by field")
    bits = {part: int(match[part] or 0) for part in ("weights", "activations", "kv")}
    allowed = {"weights": range(2, 9), "activations": (4, 5, 6, 7, 8, 16), "kv": range(2, 9)}
    letters = {"weights": "W", "activations": "A", "kv": "KV"}
    bad = [
        f"{letters[part]}{value} (there are {', '.join(map(str, allowed[part]))}"
        + (")" if part == "weights" else f"; leave {letters[part]} out for float)")
        for part, value in bits.items()
        if match[part] is not None and value not in allowed[part]
    ]
    if bad:
        raise ValueError(f"{text!r} asks for {' and '.join(bad)}")
    return Scheme(
        Weights(bits["weights"], group=int(match["group"] or 0)),  # type: ignore[arg-type]
        Activations(bits["activations"], dynamic=0 < bits["activations"] <= 8),  # type: ignore[arg-type]
        KVCache(bits["kv"]),  # type: ignore[arg-type]
    )
