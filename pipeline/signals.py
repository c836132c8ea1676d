"""Signal propagation: what flows forward and backward through each projection, float against quantized.

For each linear, over a few batches of the corpus: the mean square and mean absolute value of its output, the squared
Frobenius norms of dL/dW and of dL/d(output) under the distillation loss ("Oh! We Freeze", 2403.18159), and the
SQNR of its output against the float model's. L is the mean over all tokens looked at, so its gradient is that of one
large batch. For the float model the KL term is zero and so is its gradient: what is left there is the cross-entropy's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import models
from pipeline.distill.freeze import FREEZE_POLICIES
from pipeline.distill.losses import LossWeights, distillation_loss

ATTENTION = ("q", "k", "v", "o")
SUGGESTION_RATIO = 2.0  # how far above q's and k's gradient norm a role's must lie to be called the stronger
SUGGESTION_SHARE = 0.75  # in how many of the layers


@dataclass
class _Sums:
    """Running sums of one linear over the batches."""

    square: float = 0.0
    absolute: float = 0.0
    count: int = 0
    output_gradient: float = 0.0
    noise: float = 0.0
    reference: float = 0.0
    outputs: list[Tensor] = field(default_factory=list)


def probe(
    variants: dict[str, Callable[[], PreTrainedModel]],
    tokens: Tensor,
    valid: Tensor,
    batch: int,
    weights: LossWeights,
    advance: Callable[[], object],
) -> pd.DataFrame:
    """Measure the signals of some variants of a model.

    Args:
        variants: what makes each float32 model; the first is the float model, the reference and the teacher. Two models
            at a time are held.
        tokens: int64 [sequences, length]. valid: bool of the same shape.
        batch: sequences a forward. weights: of the loss.
        advance: called after each batch of each variant.

    Returns:
        A tidy table with columns variant, layer, role, name, tensor (output or weight), statistic, value.
    """
    makers = iter(variants.items())
    name, make = next(makers)
    teacher = make()
    tables = [_probe_one(name, teacher, teacher, tokens, valid, batch, weights, advance)]
    for name, make in makers:
        tables.append(_probe_one(name, make(), teacher, tokens, valid, batch, weights, advance))
    return pd.concat(tables, ignore_index=True)


def _probe_one(
    variant: str,
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Tensor,
    valid: Tensor,
    batch: int,
    weights: LossWeights,
    advance: Callable[[], object],
) -> pd.DataFrame:
    found = models.linears(model)
    sums = {linear.name: _Sums() for linear in found}
    for linear in found:
        model.get_submodule(linear.name).weight.requires_grad_(True).grad = None
    heads = models.head_weight(model).detach(), models.head_weight(teacher).detach()
    counted = int(valid[:, 1:].sum())
    for part, mask in zip(tokens.split(batch), valid.split(batch), strict=True):
        reference = _watch(teacher, found, sums, keep=True)
        with torch.no_grad():
            target = models.hidden_states(teacher, part)
        _release(reference)
        watched = _watch(model, found, sums, keep=False, mask=mask)
        with torch.enable_grad():
            embedded = models.hidden_states(model, part)
            loss, _, _ = distillation_loss(embedded, target, heads, part, mask, weights)
            (loss * (int(mask[:, 1:].sum()) / counted)).backward()
        _release(watched)
        advance()
    rows = []
    for linear in found:
        weight = model.get_submodule(linear.name).weight
        values = _statistics(sums[linear.name], weight.grad)
        rows += [(variant, linear.layer, linear.role, linear.name, *key, value) for key, value in values.items()]
        weight.requires_grad_(False).grad = None
    return pd.DataFrame(rows, columns=["variant", "layer", "role", "name", "tensor", "statistic", "value"])


def _statistics(sums: _Sums, gradient: Tensor | None) -> dict[tuple[str, str], float]:
    if gradient is None:
        raise ValueError("a linear got no gradient; is it used in the model's forward?")
    ratio = sums.reference / sums.noise if sums.noise else 1e20
    return {
        ("output", "mean_square"): sums.square / sums.count,
        ("output", "mean_abs"): sums.absolute / sums.count,
        ("output", "gradient_norm_sq"): sums.output_gradient,
        ("weight", "gradient_norm_sq"): float(gradient.double().square().sum()),
        ("output", "sqnr_db"): float(np.clip(10 * np.log10(max(ratio, 1e-20)), -200, 200)),
    }


def _watch(
    model: PreTrainedModel,
    found: list[models.Linear],
    sums: dict[str, _Sums],
    keep: bool,
    mask: Tensor | None = None,
) -> list[Any]:
    """Hook each linear's output: keep it as the reference, or measure it and its gradient."""
    whole = mask is None or bool(mask.all())

    def see(name: str, output: Tensor) -> None:
        if keep:
            sums[name].outputs.append(output.detach())
            return
        mine = sums[name]
        value, reference = (
            (output.detach(), mine.outputs.pop()) if whole else (output.detach()[mask], mine.outputs.pop()[mask])
        )
        mine.square += float(value.square().sum())
        mine.absolute += float(value.abs().sum())
        mine.count += value.numel()
        mine.noise += float((value - reference).square().sum())
        mine.reference += float(reference.square().sum())

        def take(gradient: Tensor) -> None:
            mine.output_gradient += float(gradient.square().sum())

        output.register_hook(take)

    return [
        model.get_submodule(linear.name).register_forward_hook(lambda _, __, out, name=linear.name: see(name, out))
        for linear in found
    ]


def _release(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def by_layer(table: pd.DataFrame, variant: str, tensor: str, statistic: str) -> pd.DataFrame:
    """One statistic as a wide table: a row a layer, a column a role, the mean where a layer has several of a role."""
    chosen = table[(table.variant == variant) & (table.tensor == tensor) & (table.statistic == statistic)]
    wide = chosen.pivot_table(index="layer", columns="role", values="value", aggfunc="mean")
    order = [role for role in (*models.ROLES, "other") if role in wide.columns]
    return wide[order].rename_axis(columns=None).reset_index()


def suggest_freeze(table: pd.DataFrame, variant: str) -> dict[str, Any]:
    """The freeze policy that the gradients of attention's projections suggest, with the numbers behind it.

    The paper's argument: projections whose gradient norm lies above q's and k's are the ones to hold still. A role
    (o, v) is suggested where its ||dL/dW||^2, divided by the layer's geometric mean of q's and k's, is at least
    SUGGESTION_RATIO in the median layer, and above 1 in at least SUGGESTION_SHARE of the layers.
    """
    wide = by_layer(table, variant, "weight", "gradient_norm_sq").set_index("layer")
    if not set(ATTENTION) <= set(wide.columns):
        return {
            "variant": variant,
            "policy": "none",
            "reason": f"the model has no separate {', '.join(ATTENTION)}",
        }
    floor = np.sqrt(wide["q"] * wide["k"])
    evidence: dict[str, Any] = {}
    for role in ("o", "v"):
        ratio: pd.Series = wide[role] / floor
        evidence[role] = {
            "median_ratio_to_qk": float(ratio.median()),
            "share_of_layers_above_qk": float(ratio.gt(1).mean()),
        }
    strong = tuple(
        role
        for role, numbers in evidence.items()
        if numbers["median_ratio_to_qk"] >= SUGGESTION_RATIO and numbers["share_of_layers_above_qk"] >= SUGGESTION_SHARE
    )
    policy = next(name for name, roles in FREEZE_POLICIES.items() if roles == strong)
    medians = {role: float(wide[role].median()) for role in wide.columns}
    return {"variant": variant, "policy": policy, "evidence": evidence, "median_gradient_norm_sq": medians}
