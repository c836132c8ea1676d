"""Freeze policies: which projections keep their calibrated codes in training ("Oh! We Freeze", 2403.18159)."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pipeline.models import Linear, role_names
from pipeline.names import look_up

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


Frozen = dict[str, Tensor | None]  # linear to its frozen output rows (int64); None: all of them


def frozen_rows(policy: str | Sequence[str], linears: list[Linear]) -> Frozen:
    """The linears, or rows of fused ones, that a policy freezes.

    Args:
        policy: a name of FREEZE_POLICIES, or patterns of module names, as in `model.layers.0.*`.
        linears: the model's quantized ones.

    Raises:
        ValueError: the policy is unknown, the model lacks a role that it needs, a pattern matches nothing, or nothing
            is left to train.
    """
    if isinstance(policy, str):
        roles = look_up("freeze policy", policy, FREEZE_POLICIES)
        missing = sorted(set(roles) - {role for linear in linears for role in linear.parts()})
        if missing:
            raise ValueError(
                f"freeze policy {policy!r} needs linears of the roles {missing}, which this model lacks; "
                f"it has {role_names(linears)}; name patterns freeze any of them"
            )
        found = {linear.name: _rows(linear, roles) for linear in linears if set(linear.parts()) & set(roles)}
    else:
        unmatched = [pattern for pattern in policy if not any(fnmatchcase(x.name, pattern) for x in linears)]
        if unmatched:
            raise ValueError(f"no linear matches the freeze patterns {unmatched}; the model has {role_names(linears)}")
        found = {x.name: None for x in linears if any(fnmatchcase(x.name, pattern) for pattern in policy)}
    if sum(rows is None for rows in found.values()) == len(linears):
        raise ValueError(f"freeze policy {policy!r} freezes all {len(linears)} linears; nothing is left to train")
    return found


def _rows(linear: Linear, roles: Sequence[str]) -> Tensor | None:
    """The rows of a linear that have one of the roles, in order; None for all of them."""
    if not linear.rows or set(linear.rows) <= set(roles):
        return None
    return torch.cat([rows for role, rows in linear.rows.items() if role in roles]).sort().values
