"""Which rows of a model's linears a freeze policy holds at their calibrated codes; see freezing.py for its terms."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pipeline.knobs.freezing import Term, terms
from pipeline.models.layout import Linear, role_names

Frozen = dict[str, Tensor | None]  # linear to its frozen output rows (int64); None: all of them


def frozen_rows(policy: str | Sequence[str], linears: list[Linear]) -> Frozen:
    """The linears, or rows of fused ones, that a policy freezes.

    Args:
        policy: terms, as freezing.py describes them.
        linears: the model's quantized ones.

    Raises:
        ValueError: a term is wrong, the model lacks a role or layer that it needs, a pattern matches nothing, or
            nothing is left to train.
    """
    wanted = terms(policy)
    problems = [problem for term in wanted if (problem := _problem(term, linears))]
    if problems:
        raise ValueError(f"distill.freeze {policy!r}: " + "; ".join(problems) + f". It has {role_names(linears)}")
    frozen: Frozen = {}
    for linear in linears:
        mine = [term for term in wanted if term.covers(linear.layer)]
        if any(term.pattern and fnmatchcase(linear.name, term.pattern) for term in mine):
            frozen[linear.name] = None
            continue
        roles = {role for term in mine for role in term.roles} & set(linear.parts())
        if roles:
            frozen[linear.name] = _rows(linear, roles)
    if sum(rows is None for rows in frozen.values()) == len(linears):
        raise ValueError(f"freeze policy {policy!r} freezes all {len(linears)} linears; nothing is left to train")
    return frozen


def _problem(term: Term, linears: list[Linear]) -> str | None:
    """Why a term says nothing of this model, or None."""
    top = max(linear.layer for linear in linears)
    if term.first_layer > top or (term.last_layer or 0) > top:
        return f"{term.text!r} names layers beyond the model's last, {top}"
    there = [linear for linear in linears if term.covers(linear.layer)]
    missing = sorted(set(term.roles) - {role for linear in there for role in linear.parts()})
    if missing:
        lacking = "this model" if there == linears else "none of its layers"
        has = "lacks" if there == linears else "has quantized"
        return f"{term.text!r} needs linears of the roles {missing}, which {lacking} {has}; name patterns freeze any"
    if term.pattern and not any(fnmatchcase(linear.name, term.pattern) for linear in there):
        return f"no linear matches {term.text!r}"
    return None


def _rows(linear: Linear, roles: set[str]) -> Tensor | None:
    """The rows of a linear that have one of the roles, in order; None for all of them."""
    if not linear.rows or set(linear.rows) <= roles:
        return None
    return torch.cat([rows for role, rows in linear.rows.items() if role in roles]).sort().values
