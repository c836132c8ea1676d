"""A mixed-precision plan: how many bits each linear gets for a given average, so that the predicted loss is least.

The predicted loss of a linear at b bits is tokens / 2 * sum(g^2 dW_b^2), in nats a token, with the float model's g (see
gradients.py) and dW_b the error of rounding it to nearest at b bits on its own kind of grid. The losses of linears are
taken to add up. What remains is a knapsack, solved greedily: from the fewest bits on, each step takes the largest fall
of the loss for a bit. On convex curves that is optimal up to the last step that still fits, so each linear's curve is
replaced by its lower convex hull. (HAWQ, 1905.03696, chooses widths by second-order sensitivity; the empirical Fisher's
diagonal stands here for its Hessian.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.knobs.scheme import Scheme, Weights
from pipeline.models import layout
from pipeline.rounding.methods import rtn

Plan = dict[str, int]  # linear to bits


@dataclass(frozen=True)
class Curve:
    """Predicted loss (nats a token) of one linear at each number of bits. size: its weights."""

    name: str
    layer: int
    role: str
    size: int
    losses: Mapping[int, float]


@torch.no_grad()
def curves(
    model: PreTrainedModel,
    gradients: Mapping[str, Tensor],
    schemes: Mapping[str, Weights],
    tokens: int,
    widths: Sequence[int],
    advance: Callable[[], object],
) -> list[Curve]:
    """The curve of each linear of the decoder that a scheme quantizes and that has a gradient.

    Args:
        model: the float model. gradients: of its mean cross-entropy over `tokens` predicted ones, by linear.
        schemes: of each quantized weight, whose symmetry and group are kept. widths: bits to try.
        advance: called after each linear.
    """
    loss_curves = []
    for linear in layout.linears(model):
        if linear.name not in schemes:
            continue
        weight = model.get_submodule(linear.name).weight.detach()
        importance = gradients[linear.name].square()
        if not bool(importance.any()):  # no gradient says what its bits are worth: it keeps the scheme's
            advance()
            continue
        losses = {}
        for bits in sorted(widths):
            scheme = replace(schemes[linear.name], bits=bits)  # type: ignore[arg-type]
            error = rtn(weight, None, scheme).weight.sub_(weight).square_().mul_(importance)
            losses[bits] = tokens / 2 * float(error.sum(dim=-1).double().sum())
        loss_curves.append(Curve(linear.name, linear.layer, linear.role, weight.numel(), losses))
        advance()
    return loss_curves


def choose(loss_curves: Sequence[Curve], average: float) -> Plan:
    """Bits of each linear: at most `average` a weight, and no more predicted loss than a uniform width within that.

    Raises:
        ValueError: even the fewest bits exceed the average.
    """
    widths = sorted(loss_curves[0].losses)
    if average < widths[0]:
        raise ValueError(f"an average of {average} bits is below the fewest, {widths[0]}")
    plan = dict.fromkeys((curve.name for curve in loss_curves), widths[0])
    left = (average - widths[0]) * sum(curve.size for curve in loss_curves)
    steps = [(slope, i, bits) for i, curve in enumerate(loss_curves) for slope, bits in _hull(curve)]
    blocked = set()
    for _, i, bits in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        curve = loss_curves[i]
        cost = (bits - plan[curve.name]) * curve.size
        if cost > left:
            blocked.add(i)
        if i not in blocked:
            plan[curve.name], left = bits, left - cost
    uniform = dict.fromkeys(plan, max(bits for bits in widths if bits <= average))
    return min(plan, uniform, key=lambda choice: predicted(loss_curves, choice))


def _hull(curve: Curve) -> Iterator[tuple[float, int]]:
    """Steps along the lower convex hull, from the fewest bits on: the fall of the loss a bit and weight, the bits."""
    at = min(curve.losses)
    while True:
        ahead = {
            bits: (curve.losses[at] - loss) / ((bits - at) * curve.size)
            for bits, loss in curve.losses.items()
            if bits > at and loss < curve.losses[at]
        }
        if not ahead:
            return
        at, slope = max(ahead.items(), key=lambda step: (step[1], step[0]))
        yield slope, at


def predicted(loss_curves: Sequence[Curve], plan: Plan) -> float:
    """The plan's predicted loss, nats a token."""
    return sum(curve.losses[plan[curve.name]] for curve in loss_curves)


def average_bits(loss_curves: Sequence[Curve], plan: Plan) -> float:
    """Bits a quantized weight, scales left out."""
    return sum(plan[curve.name] * curve.size for curve in loss_curves) / sum(curve.size for curve in loss_curves)


def as_scheme(scheme: Scheme, loss_curves: Sequence[Curve], plan: Plan) -> dict[str, Any]:
    """The scheme written long, as params.yaml takes it, with the plan as overrides after its own (the last counts)."""
    own = []
    for override in scheme.overrides:
        parts = {"weights": override.weights, "activations": override.activations}
        own.append({"match": override.match, **{key: asdict(part) for key, part in parts.items() if part is not None}})
    return {
        "weights": asdict(scheme.weights),
        "activations": asdict(scheme.activations),
        "kv_cache": asdict(scheme.kv_cache),
        "embedding": asdict(scheme.embedding),
        "head": asdict(scheme.head),
        "overrides": own + overrides(scheme, loss_curves, plan),
    }


def overrides(scheme: Scheme, loss_curves: Sequence[Curve], plan: Plan) -> list[dict[str, Any]]:
    """An override for each linear that has other bits by now: the plan's, and what else is not the scheme's own."""
    rest = asdict(scheme.weights)
    entries = []
    for curve in loss_curves:
        now = scheme.of(curve.name, curve.role)[0]
        if now.bits != plan[curve.name]:
            kept = {field: value for field, value in asdict(now).items() if value != rest[field]}
            entries.append({"match": curve.name, "weights": kept | {"bits": plan[curve.name]}})
    return entries
