"""What is quantized and how: weights, activations, KV cache, embedding and head, and what differs for some linears.

A scheme is written short, as in W4A8KV4E8H8, or long, with every field. Overrides make mixed precision: each names some
of the decoder's linears and says what their weights or activations have instead. Of several that match, the last one
counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

EMBEDDING, HEAD = "embedding", "lm_head"  # roles of what lies outside the decoder's layers
SHORT = re.compile(
    r"W(?P<weights>\d+)(g(?P<group>\d+))?(A(?P<activations>\d+))?(KV(?P<kv>\d+))?"
    r"(E(?P<embedding>\d+)(g(?P<embedding_group>\d+))?)?(H(?P<head>\d+)(g(?P<head_group>\d+))?)?"
)
Observer = Literal["split", "minmax", "percentile", "mse"]


@dataclass(frozen=True)
class Weights:
    """Grid of a weight: of a linear, or of the embedding, whose rows count as output channels.

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
    tensor. observer: how the static range is found, see calibration/observers.py; percentile: share of the values (in
    percent) that it holds.
    """

    bits: Literal[0, 4, 5, 6, 7, 8, 16]
    symmetric: bool = True
    dynamic: bool = False
    observer: Observer = "split"
    percentile: float = 99.99


@dataclass(frozen=True)
class KVCache:
    """Grid of keys and values as a cache stores them, after rotary embedding; scales are dynamic.

    bits: 2 to 8; 0: stays in float. group: values of a token that share a scale, over its key (value) heads one after
    the other; 0: all of them, a scale a token. keys: token, as values are; or channel, a scale for each channel of a
    head in a block of tokens (KIVI, 2402.02750). block: tokens in one, at least 2; the newest, while it is not whole,
    stays in float.
    """

    bits: Literal[0, 2, 3, 4, 5, 6, 7, 8]
    symmetric: bool = True
    group: int = 0
    keys: Literal["token", "channel"] = "token"
    block: int = 32

    def __str__(self) -> str:
        """In words: asymmetric INT4 KV cache in groups of 32."""
        if not self.bits:
            return "float KV cache"
        groups = f" in groups of {self.group}" if self.group else ""
        blocks = f", keys per channel in blocks of {self.block} tokens" if self.keys == "channel" else ""
        return f"{_sign(self.symmetric)}INT{self.bits} KV cache{groups}{blocks}"


@dataclass(frozen=True)
class Override:
    """What the linears that `match` names have instead.

    match: a role (q, k, v, o, gate, up, down), the last part of a module's name (down_proj), or a pattern of the whole
    name (model.layers.0.*).
    """

    match: str
    weights: Weights | None = None
    activations: Activations | None = None

    def names(self, name: str, role: str) -> bool:
        """Whether it speaks of the linear of this name and role."""
        return self.match == role or fnmatchcase(name, self.match) or self.match == name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Scheme:
    """Weights and inputs of the decoder's linears, KV cache, embedding, head, and the exceptions.

    embedding, head: of these weights; the head's input stays in float. A weight that the two share has the finer grid.
    """

    weights: Weights
    activations: Activations = Activations(0)
    kv_cache: KVCache = KVCache(0)
    overrides: tuple[Override, ...] = ()
    embedding: Weights = Weights(0)
    head: Weights = Weights(0)

    def of(self, name: str, role: str) -> tuple[Weights, Activations]:
        """Weights and activations of the decoder's linear of this name and role."""
        weights, activations = self.weights, self.activations
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
            parts.append(str(kv))
        parts += [
            f"{_sign(grid.symmetric)}INT{grid.bits} {part}" + (f" in groups of {grid.group}" if grid.group else "")
            for part, grid in (("embedding", self.embedding), ("head", self.head))
            if grid.bits
        ]
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
    """A scheme written short: W<bits>, g<group> after it, A<bits>, KV<bits>, E<bits>, H<bits>; the rest stays in float.

    W4A16KV8E8H6: symmetric weights per output channel, static INT16 activations a tensor, KV cache a token, embedding
    and head (either may have a g<group>, too) a row. Activations of 8 bits and fewer are dynamic, a token each, as in
    LLM-QAT (2305.17888); those of 16 static, as in "Oh! We Freeze" (2403.18159).

    Raises:
        ValueError: it is not such a text, or its bits are none that there are.
    """
    match = SHORT.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no scheme; write it as W4, W4A8E8H8, W4g128A8KV4, or long, field by field")
    letters = {"weights": "W", "activations": "A", "kv": "KV", "embedding": "E", "head": "H"}
    allowed = {part: (4, 5, 6, 7, 8, 16) if part == "activations" else range(2, 9) for part in letters}
    bits: dict[str, Any] = {part: int(match[part] or 0) for part in letters}
    bad = [
        f"{letters[part]}{value} (there are {', '.join(map(str, allowed[part]))}"
        + (")" if part == "weights" else f"; leave {letters[part]} out for float)")
        for part, value in bits.items()
        if match[part] is not None and value not in allowed[part]
    ]
    if bad:
        raise ValueError(f"{text!r} asks for {' and '.join(bad)}")
    return Scheme(
        Weights(bits["weights"], group=int(match["group"] or 0)),
        Activations(bits["activations"], dynamic=0 < bits["activations"] <= 8),
        KVCache(bits["kv"]),
        embedding=Weights(bits["embedding"], group=int(match["embedding_group"] or 0)),
        head=Weights(bits["head"], group=int(match["head_group"] or 0)),
    )
