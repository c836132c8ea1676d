"""Freeze policies as they are written: which projections keep their calibrated codes ("Oh! We Freeze", 2403.18159).

A policy is a list of terms, or one text with commas between them. A term is a named policy (ov), a role (q), or a
pattern of module names (*.down_proj), and may say in which layers after an @: ov@0-7, v@20-, *.down_proj@3.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.knobs.names import unknown

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "in", "x", "out", "other")  # of linears; see models/layout.py
FREEZE_POLICIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "o": ("o",),
    "v": ("v",),
    "ov": ("o", "v"),
    "qk": ("q", "k"),
    "qkv": ("q", "k", "v"),
    "qkvo": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
}
Policy = str | list[str]
AUTO = "auto"  # what analyze suggests; it stands alone
LAYERS = re.compile(r"(\d+)(?:(-)(\d*))?")


@dataclass(frozen=True)
class Term:
    """One part of a policy: roles or a pattern of module names, and the layers, first and last (None: to the end)."""

    text: str
    roles: tuple[str, ...] = ()
    pattern: str = ""
    first_layer: int = 0
    last_layer: int | None = None

    def covers(self, layer: int) -> bool:
        """Whether it speaks of this layer."""
        return self.first_layer <= layer and (self.last_layer is None or layer <= self.last_layer)


def terms(policy: str | Sequence[str]) -> list[Term]:
    """The terms of a policy; none of them for the policy none.

    Raises:
        ValueError: terms that are no policy, role or pattern, or whose layers are no range: all of them.
    """
    texts = policy.split(",") if isinstance(policy, str) else policy
    parsed_terms: list[Term] = []
    problems: list[str] = []
    for text in (text.strip() for text in texts):
        what, at, where = text.partition("@")
        layers = LAYERS.fullmatch(where) if at else None
        if at and not layers:
            problems.append(f"{text!r} has no layers after its @; write ov@0-7, ov@3 or ov@20-")
        elif layers and layers[3] and int(layers[3]) < int(layers[1]):
            problems.append(f"{text!r} ends before it begins")
        first_layer = int(layers[1]) if layers else 0
        last_layer = (int(layers[3]) if layers[3] else None if layers[2] else first_layer) if layers else None
        if what in FREEZE_POLICIES or what in ROLES:
            parsed_terms.append(Term(text, FREEZE_POLICIES.get(what, (what,)), "", first_layer, last_layer))
        elif "." in what or "*" in what:
            parsed_terms.append(Term(text, (), what, first_layer, last_layer))
        elif what == AUTO:
            problems.append("'auto' stands alone: it is what analyze suggests, for all layers")
        else:
            problems.append(unknown("freeze policy", what, dict.fromkeys([*FREEZE_POLICIES, AUTO, *ROLES])))
    if problems:
        raise ValueError("; ".join(problems))
    return [term for term in parsed_terms if term.roles or term.pattern]
