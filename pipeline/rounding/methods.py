"""Post-training quantization of one weight: how its codes are chosen.

A rounding takes a weight [out, in] and the Hessian of its layer's squared output error, H = X^T X over the inputs X
[tokens, in], and gives codes, scales and zero points. It also gives the latent weight, the float numbers that round to
those codes, where quantization-aware training starts from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import Step, grouped
from pipeline.rounding.across import round_across
from pipeline.rounding.descent import descend
from pipeline.rounding.feedback import damped, feed_back, inverse_factor

SHARES = [1 - i / 10 for i in range(8)]  # of the min-max range, that mse and clip try: 1 down to 0.3
REFINEMENTS = (0.05, 0.025)  # how far from the best share so far they look then


@dataclass(frozen=True)
class Rounded:
    """A quantized weight: codes int8 or uint8 [out, in], step [out, n], latent float32 [out, in], GPTQ's damping."""

    codes: Tensor
    step: Step
    latent: Tensor
    scheme: Weights
    damping: float = 0.0

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for: float32 [out, in]."""
        return weights.dequantize(self.codes, self.step, self.scheme)


def rtn(weight: Tensor, hessian: Tensor | None, scheme: Weights, **_: object) -> Rounded:
    """Round to nearest on the min-max grid; the Hessian is not used."""
    return _nearest(weight, weights.weight_step(weight, scheme), scheme)


def mse(weight: Tensor, hessian: Tensor | None, scheme: Weights, **_: object) -> Rounded:
    """Round to nearest on the grid whose range, a share of min-max, leaves the least squared weight error.

    Each output channel or group has a share of its own. The Hessian is not used.
    """
    return _nearest(weight, SCALES["mse"](weight, hessian, scheme), scheme)


def clip(weight: Tensor, hessian: Tensor, scheme: Weights, **_: object) -> Rounded:
    """As `mse`, but for the least squared error of the output, group by group: AWQ's clip search (2306.00978).

    AWQ measures that error on some inputs; the blocks of the Hessian on its diagonal give it for all of them.
    """
    return _nearest(weight, SCALES["output"](weight, hessian, scheme), scheme)


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Weights,
    damping: float = 0.01,
    block: int = 64,
    act_order: bool = True,
    scales: str = "output",
    descent: int = 0,
    outputs: Tensor | None = None,
    outputs_damping: float = 0.1,
) -> Rounded:
    """Round column by column, each column's error spread over those still to come (Frantar et al., 2210.17323, alg. 1).

    Passes of coordinate descent over codes and scales may follow. Where it is known how the outputs' errors count
    together, output channels make up for each other, too, see `round_across`.

    Args:
        weight: float32 [out, in].
        hessian: float32 [in, in], X^T X up to a factor.
        scheme: of the grid; groups keep their scales whatever the order.
        damping: share of the mean diagonal that is added to the diagonal; raised tenfold until the Hessian inverts.
        block: columns whose error is fed back at once; changes speed, and the result only by rounding.
        act_order: take the columns in falling order of the Hessian's diagonal.
        scales: a name of SCALES, how they are found before any column is rounded.
        descent: passes over all codes and scales afterwards, see `descend`.
        outputs: float32 [out, out], how the outputs' errors count together, up to a factor; None: each for itself.
        outputs_damping: share of its mean diagonal that is added to its diagonal.

    Returns:
        Codes and scales in the weight's own column order. The latent weight is what each column had become when it was
        last rounded, held inside the grid's range. An output channel whose error, e H e^T, came out above that of round
        to nearest is rounded to nearest: the feedback can push columns out of their group's range. With `outputs` all
        that is of the weight as other output channels have moved it.

    Raises:
        ValueError: the Hessian does not invert however it is damped, as when it is not finite.
    """
    columns = len(hessian)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    upper, used = inverse_factor(hessian[order][:, order], damping)
    raised = damped(hessian, used)

    def rounded(weight: Tensor) -> Rounded:
        step = SCALES[scales](weight, hessian, scheme)
        codes, latent = feed_back(weight, upper, order, step, scheme, block)
        if descent:
            codes, step, latent = descend(weight, raised, codes, step, scheme, descent, block)
        candidate = Rounded(
            codes.to(weights.grid_of(scheme).dtype), step, weights.clamp(latent, step, scheme), scheme, used
        )
        return _no_worse(candidate, rtn(weight, None, scheme), weight, hessian)

    if outputs is None:
        return rounded(weight)
    return _joined(round_across(weight, outputs, outputs_damping, rounded))


def _no_worse(candidate: Rounded, nearest: Rounded, weight: Tensor, hessian: Tensor) -> Rounded:
    """The candidate, but for the output channels that are better rounded to nearest."""
    ours, theirs = (_output_errors(rounded.weight - weight, hessian) for rounded in (candidate, nearest))
    worse = (ours > theirs)[:, None]
    return Rounded(
        torch.where(worse, nearest.codes, candidate.codes),
        Step(*(torch.where(worse, *parts) for parts in zip(nearest.step, candidate.step, strict=True))),
        torch.where(worse, nearest.latent, candidate.latent),
        candidate.scheme,
        candidate.damping,
    )


def _joined(parts: list[Rounded]) -> Rounded:
    """Blocks of output channels as one."""
    step = Step(*(torch.cat(blocks) for blocks in zip(*(part.step for part in parts), strict=True)))
    codes, latent = (torch.cat(blocks) for blocks in zip(*((part.codes, part.latent) for part in parts), strict=True))
    return Rounded(codes, step, latent, parts[0].scheme, parts[0].damping)


def _output_errors(error: Tensor, hessian: Tensor) -> Tensor:
    """Squared error of each output channel, e H e^T of the rows of a weight's error [out, in]: [out]."""
    return ((error @ hessian) * error).sum(dim=1)


def _nearest(weight: Tensor, step: Step, scheme: Weights) -> Rounded:
    codes = weights.quantize(weight, step, scheme).to(weights.grid_of(scheme).dtype)
    return Rounded(codes, step, weight, scheme)


def _minmax_step(weight: Tensor, hessian: Tensor | None, scheme: Weights) -> Step:
    """Nothing is clipped."""
    return weights.weight_step(weight, scheme)


def _mse_step(weight: Tensor, hessian: Tensor | None, scheme: Weights) -> Step:
    """The share of the min-max range with the least squared error of the weight."""
    return _best_step(weight, scheme, lambda error: error.square().sum(dim=-1))


def _output_step(weight: Tensor, hessian: Tensor, scheme: Weights) -> Step:
    """The share of the min-max range with the least squared error of the output, each group of inputs for itself."""
    group = scheme.group or weight.shape[1]
    blocks = torch.stack([hessian[i : i + group, i : i + group] for i in range(0, len(hessian), group)])  # (n, g, g)

    def output_error(error: Tensor) -> Tensor:
        by_group = error.transpose(0, 1)  # (n, out, g)
        return (torch.bmm(by_group, blocks) * by_group).sum(dim=-1).T

    return _best_step(weight, scheme, output_error)


SCALES: dict[str, Callable[..., Step]] = {"minmax": _minmax_step, "mse": _mse_step, "output": _output_step}


def _best_step(weight: Tensor, scheme: Weights, loss: Callable[[Tensor], Tensor]) -> Step:
    """The step [out, n] of the share of min-max with the least loss; `loss` takes errors [out, n, g] to [out, n].

    A symmetric group's scale may be negative: its grid reaches one step further on one side, and so that is the side
    where its values do, as in GGUF's own Q4_0. A whole row gains little by it, and NPUs want its scale above zero; nor
    does a grid of 8 bits.
    """
    best, lowest = _best_share(weight, scheme, loss, 1)
    if scheme.symmetric and scheme.group and scheme.bits < 8:
        turned, losses = _best_share(weight, scheme, loss, -1)
        best = Step(*(torch.where(losses < lowest, new, old) for new, old in zip(turned, best, strict=True)))
    return best


def _best_share(weight: Tensor, scheme: Weights, loss: Callable[[Tensor], Tensor], sign: int) -> tuple[Step, Tensor]:
    """The best step of scales of one sign, and its loss: [out, n] all.

    Each channel or group first tries SHARES, then looks around its best one.
    """
    grid, values = weights.grid_of(scheme), grouped(weight, scheme.group)
    least, greatest = values.aminmax(dim=-1, keepdim=True)
    dtype = grid.scale_dtype(least, greatest)
    best, share = grid.step(least, greatest, dtype), torch.ones_like(least)
    lowest = torch.full_like(least, torch.inf)

    def attempt(candidate: Tensor) -> None:
        nonlocal best, share, lowest
        scale, zero = grid.step(candidate * least, candidate * greatest, dtype)
        step = Step(sign * scale, zero)
        losses = loss(grid.dequantize(grid.quantize(values, step), step).sub_(values))[..., None]
        better = losses < lowest
        best = Step(*(torch.where(better, new, old) for new, old in zip(step, best, strict=True)))
        share, lowest = torch.where(better, candidate, share), torch.where(better, losses, lowest)

    for start in SHARES:
        attempt(torch.full_like(least, start))
    for distance in REFINEMENTS:
        around = share
        for side in (-1, 1):
            attempt(around + side * distance)
    return Step(best.scale.squeeze(-1), best.zero.squeeze(-1)), lowest.squeeze(-1)


def output_sqnr(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """SQNR in dB of a linear's output on the inputs behind the Hessian: tr(W H W^T) / tr(E H E^T) with E = W - W'."""
    error = weight - approximation
    signal, noise = (_output_errors(matrix, hessian).sum().double() for matrix in (weight, error))
    return 200.0 if noise <= 0 else float(10 * torch.log10(signal / noise).clamp(-20, 20))


ROUNDINGS: dict[str, Callable[..., Rounded]] = {"rtn": rtn, "mse": mse, "clip": clip, "gptq": gptq}
