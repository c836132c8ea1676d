"""AWQ's and SmoothQuant's rescaling: divide an activation's channels by s and multiply what reads them by s.

The division is folded into the op that makes the activation, so the float model computes the same function:
a norm's weight and bias, v's rows (o reads a mix of values, channel by channel), up's rows (down reads gate * up).
Which op a linear reads is found by running the layer, and each fold is checked by running it again: where the output
moves, as it does where query heads share a value head or a nonlinearity stands between, the pair is skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.calibration.layers import Inputs, Runner
from pipeline.calibration.norm_layers import is_norm, norm_offset
from pipeline.knobs.scheme import Weights
from pipeline.models import forward, layout
from pipeline.quant.model import FLOAT_DTYPE
from pipeline.rounding.methods import rtn

TOLERANCE = 1e-3  # of what the layer adds to a token, float32: what another order of sums may change
EXPONENTS = [i / 20 for i in range(20)]  # that AWQ's search tries
NEARBY = 2.0 ** (torch.tensor(sorted(range(-32, 33), key=abs)) / 512)  # of a scale: tried until float16 holds a bias
FLOOR = 1e-5  # least value of an activation's or weight's channel magnitude in a quotient


@dataclass(frozen=True)
class Pair:
    """An op and the linears that read what it makes: a norm (no rows), or a linear's rows, channel i in row rows[i]."""

    maker: str
    rows: Tensor | None
    readers: tuple[layout.Linear, ...]

    def __str__(self) -> str:
        return f"{self.maker} -> {', '.join(reader.name.rsplit('.', 1)[-1] for reader in self.readers)}"


@torch.no_grad()
def pairs(runner: Runner, layer: nn.Module, group: list[layout.Linear]) -> list[Pair]:
    """The pairs of a layer that may fold: each norm with the linears that read it, v with o, up with down."""
    names = {module: name for name, module in runner.model.named_modules()}
    makers: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # so that no id is used twice
    read: dict[str, list[layout.Linear]] = {}

    def made(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            kept.append(out)
            makers[id(out)] = module

    def see(linear: layout.Linear, x: Tensor) -> None:
        if id(x) in makers:
            read.setdefault(names[makers[id(x)]], []).append(linear)

    norms = [m for m in layer.modules() if m is not layer and is_norm(m)]
    handles = [norm.register_forward_hook(made) for norm in norms]
    handles += forward.on_layer_inputs(runner.model, group, see)
    _one_run(runner, layer)
    for handle in handles:
        handle.remove()
    candidates = [Pair(norm, None, tuple(readers)) for norm, readers in read.items()]
    by_role = {role: (linear, rows) for linear in group for role, rows in linear.parts().items()}
    for role, reader in (("v", "o"), ("up", "down")):
        if role in by_role and reader in by_role:
            linear, rows = by_role[role]
            module = runner.model.get_submodule(linear.name)
            chosen = torch.arange(module.out_features) if isinstance(rows, slice) else rows
            candidates.append(Pair(linear.name, chosen, (by_role[reader][0],)))
    return candidates


@torch.no_grad()
def fold(runner: Runner, layer: nn.Module, pair: Pair, scale: Tensor) -> Tensor | None:
    """Divide what the pair's maker makes by `scale` [channels], and multiply its readers' columns by it.

    A norm's weight and any bias are rounded to the dtype that the export stores, and the scale adapted to that, so that
    the fold stays exact.

    Returns:
        The scale that was folded; None where the layer does not allow it, and nothing has changed.
    """
    model = runner.model
    maker = model.get_submodule(pair.maker)
    readers = [model.get_submodule(reader.name) for reader in pair.readers]
    if pair.rows is not None and len(pair.rows) != readers[0].in_features:
        return None
    changed = [*maker.parameters(recurse=False), *(reader.weight for reader in readers)]
    before, output = [p.clone() for p in changed], _one_run(runner, layer)
    used = _divide(maker, pair.rows, scale, norm_offset(maker) if pair.rows is None else 0.0)
    for reader in readers:
        reader.weight.mul_(used)
    if _moved(output, _one_run(runner, layer), runner.states[0]) <= TOLERANCE:
        return used
    for parameter, old in zip(changed, before, strict=True):
        parameter.copy_(old)
    return None


def _divide(maker: nn.Module, rows: Tensor | None, scale: Tensor, offset: float) -> Tensor:
    """Divide what a norm or a linear's rows make; returns the scale [channels] that was left after rounding."""
    weight: Tensor = maker.weight  # type: ignore[assignment]
    bias: Tensor | None = getattr(maker, "bias", None)
    chosen = slice(None) if rows is None else rows
    norm = weight + offset if rows is None else None
    used = _adapted(scale, norm, offset, None if bias is None else bias[chosen])
    if norm is None:
        weight[chosen] /= used[:, None]
    else:
        weight.copy_(torch.where(used == 1, weight, _stored(norm / used - offset)))
    if bias is not None:
        bias[chosen] = _stored(bias[chosen] / used)
    return used


def _adapted(scale: Tensor, norm: Tensor | None, offset: float, bias: Tensor | None) -> Tensor:
    """A scale close to `scale` by which float16 holds a norm's divided weight and the divided bias: all [channels].

    The weight is held exactly; for the bias, the best of some that are NEARBY is taken.
    """
    tried = scale[None] if bias is None else scale * NEARBY[:, None]  # (tries, channels)
    if norm is not None:
        divided = _stored(norm / tried - offset) + offset
        tried = torch.where((norm == 0) | (divided == 0), torch.ones_like(tried), norm / divided)
    if bias is None:
        return tried[0]
    error = (_stored(bias / tried) * tried - bias).abs()
    return tried.gather(0, error.argmin(dim=0, keepdim=True))[0]


def _stored(values: Tensor) -> Tensor:
    """Float32 values as the export holds them."""
    return values.to(FLOAT_DTYPE).float()


def _moved(before: Tensor, after: Tensor, states: Tensor) -> float:
    """How far a layer's output moved, as a share of what it adds to its input, in the median token.

    Not as a share of the output [batch, seq, hidden], a few of whose values may be a thousand times larger than others.
    """
    return float(((after - before).norm(dim=-1) / (before - states).norm(dim=-1)).median())


def _one_run(runner: Runner, layer: nn.Module) -> Tensor:
    """The layer's output on the first batch, a sequence alone, in float32."""
    wide = runner.arguments[layer][0].widened()
    return Runner(runner.model, [runner.states[0].float()], {layer: [wide]}, (), "float32").call(layer, 0)


def awq(weights: list[Tensor], inputs: Inputs, schemes: list[Weights], strength: float) -> Tensor:
    """AWQ's scale of each input channel (2306.00978, eq. 4): s = mean|x|^a / mean|w|^(1-a), a searched.

    The a with the least squared error of the readers' outputs, sum tr(E H E^T) with E = W - Q(W s) / s, is taken: the
    Hessian gives it for all calibration tokens without a forward. (AWQ's own code measures the error at the end of the
    block, on a sample.)

    Args:
        weights: float32 [out, in] of the linears that read the same input. schemes: of each.
        inputs: of them. strength: not used.

    Returns:
        float32 [in]; all ones where no scale beats none.
    """
    magnitude = inputs.mean_abs.clamp(min=FLOOR)
    normal = torch.cat([w.abs() / w.abs().amax(dim=1, keepdim=True).clamp(min=FLOOR) for w in weights]).mean(dim=0)
    best, lowest = torch.ones_like(magnitude), torch.tensor(torch.inf)
    for exponent in EXPONENTS:
        scale = (
            magnitude.pow(exponent) / normal.clamp(min=FLOOR).pow(1 - exponent) if exponent else torch.ones_like(best)
        )
        scale = scale / (scale.amax() * scale.amin()).sqrt()
        loss = torch.zeros(())
        for weight, scheme in zip(weights, schemes, strict=True):
            if not scheme.bits:
                continue
            error = rtn(weight * scale, None, scheme).weight / scale - weight
            loss = loss + ((error @ inputs.hessian) * error).sum()
        if loss < lowest:
            best, lowest = scale, loss
    return best


def smoothquant(weights: list[Tensor], inputs: Inputs, schemes: list[Weights], strength: float) -> Tensor:
    """SmoothQuant's scale of each input channel (2211.10438, eq. 4): s = max|x|^a / max|w|^(1-a), a the strength.

    Args:
        weights: float32 [out, in] of the linears that read the same input. inputs: of them. schemes: not used.
        strength: how much of the difficulty moves from activations to weights, 0 to 1.
    """
    top = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    return inputs.absmax.clamp(min=FLOOR).pow(strength) / top.clamp(min=FLOOR).pow(1 - strength)


RESCALINGS: dict[str, Callable[[list[Tensor], Inputs, list[Weights], float], Tensor]] = {
    "awq": awq,
    "smoothquant": smoothquant,
}


@torch.no_grad()
def rescale(
    runner: Runner,
    layer: nn.Module,
    group: list[layout.Linear],
    inputs: dict[str, Inputs],
    schemes: dict[str, Weights],
    method: str,
    strength: float,
) -> list[str]:
    """Find and fold the scales of a layer's pairs; `inputs` become those of the rescaled layer.

    Returns:
        The pairs that were skipped, since they do not fold.
    """
    skipped = []
    for pair in pairs(runner, layer, group):
        weights = [runner.model.get_submodule(reader.name).weight for reader in pair.readers]
        shared_inputs = inputs[pair.readers[0].name]
        scale = RESCALINGS[method](weights, shared_inputs, [schemes[reader.name] for reader in pair.readers], strength)
        used = fold(runner, layer, pair, scale)
        if used is None:
            skipped.append(str(pair))
            continue
        for reader_inputs in {id(inputs[reader.name]): inputs[reader.name] for reader in pair.readers}.values():
            reader_inputs.hessian.div_(used[:, None]).div_(used[None, :])
            reader_inputs.absmax.div_(used)
            reader_inputs.mean_abs.div_(used)
    return skipped
