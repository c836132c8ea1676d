"""Freeze policies: which projections keep their calibrated codes in training ("Oh! We Freeze", 2403.18159)."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

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


def frozen_linears(policy: str | Sequence[str], linears: list[Linear]) -> set[str]:
    """Names of the linears that a policy freezes.

    Args:
        policy: a name of FREEZE_POLICIES, or patterns of module names, as in `model.layers.0.*`.
        linears: the model's.

    Raises:
        ValueError: the policy is unknown, the model lacks a role that it needs, a pattern matches nothing, or nothing
            is left to train.
    """
    if isinstance(policy, str):
        roles = look_up("freeze policy", policy, FREEZE_POLICIES)
        missing = sorted(set(roles) - {linear.role for linear in linears})
        if missing:
            raise ValueError(
                f"freeze policy {policy!r} needs linears of the roles {missing}, which this model lacks; "
                f"it has {role_names(linears)}; name patterns freeze any of them"
            )
        frozen = {linear.name for linear in linears if linear.role in roles}
    else:
        unmatched = [pattern for pattern in policy if not any(fnmatchcase(x.name, pattern) for x in linears)]
        if unmatched:
            raise ValueError(f"no linear matches the freeze patterns {unmatched}; the model has {role_names(linears)}")
        frozen = {linear.name for linear in linears if any(fnmatchcase(linear.name, pattern) for pattern in policy)}
    if len(frozen) == len(linears):
        raise ValueError(f"freeze policy {policy!r} freezes all {len(linears)} linears; nothing is left to train")
    return frozen
