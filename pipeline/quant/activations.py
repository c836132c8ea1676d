"""Activations on a real integer grid, 16 bits included: static a tensor, or dynamic a token."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.knobs.scheme import Activations
from pipeline.quant.float_signals import are_float
from pipeline.quant.grid import Grid, Step

STEP_DTYPE = torch.float32  # of a runtime's activation scales


@dataclass(frozen=True, eq=False)  # eq is ours, and tensors have no hash to match it
class Quantizer:
    """Quantizes a linear's input: the scheme, and the calibrated scale and zero point (scalars) of a static one.

    outer: of a second grid of as many bits, coarser, for what lies beyond the first one's range: x is what its range
    holds of it plus the rest, each on a grid of its own. So what few tokens alone reach does not take the others'
    resolution (calibration/observers.py).
    """

    scheme: Activations
    step: Step | None = None
    outer: Step | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """dequantize(quantize(x)) of [..., width], with the straight-through gradient."""
        grid = Grid(self.scheme.bits, self.scheme.symmetric)
        return FakeQuantize.apply(x, self.step, grid, self.outer)

    def __eq__(self, other: object) -> bool:
        """Whether it does the same to every x."""
        if not isinstance(other, Quantizer) or self.scheme != other.scheme:
            return False
        return _same(self.step, other.step) and _same(self.outer, other.outer)


def _same(a: Step | None, b: Step | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(bool(mine == theirs) for mine, theirs in zip(a, b, strict=True))


class FakeQuantize(torch.autograd.Function):
    """dequantize(quantize(x)) with the straight-through gradient: identity inside the grid's range, zero outside it.

    Without a step, each token (the last dimension) has its own min-max range, which clips nothing. The result has x's
    dtype, or that of the autocast around it, which is what the linear would cast it to.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step | None, grid: Grid, outer: Step | None = None) -> Tensor:
        wide, inside = x.float(), None
        mine = grid.step_of(wide, STEP_DTYPE) if step is None else step
        beyond = None if outer is None else beyond_range(wide, mine, grid)
        if step is None or outer is not None or not ctx.needs_input_grad[0]:
            codes = grid.quantize(wide, mine)
        else:
            codes, inside = grid.quantize_and_tell(wide, mine)
        if not grid.symmetric:
            codes.sub_(mine.zero)
        values = codes.mul_(mine.scale)
        if outer is not None and beyond is not None:
            outer_codes, inside = grid.quantize_and_tell(beyond, outer)
            values += grid.dequantize(outer_codes, outer)
        ctx.save_for_backward(inside)
        where = x.device.type
        reader = torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else x.dtype
        return values.to(reader)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] if inside is None else grads[0] * inside, None, None, None


def bounds(step: Step, grid: Grid) -> tuple[Tensor, Tensor]:
    """Least and greatest value on a static grid."""
    low, high = grid.levels(step)
    return low * step.scale, high * step.scale


def beyond_range(x: Tensor, step: Step, grid: Grid) -> Tensor:
    """What a static grid's range does not hold of each value: zero within it."""
    return x - x.clamp(*bounds(step, grid))


def quantize_inputs(model: nn.Module, quantizers: Mapping[str, Quantizer]) -> list[Any]:
    """Fake-quantize the input of each named linear from now on; returns the hooks' handles.

    q, k and v (gate and up) read the same tensor: where they quantize it alike, it is quantized once.
    """
    memo: dict[str, Any] = {}

    def hook(quantizer: Quantizer) -> Any:
        def quantize_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            if are_float():
                return args
            if memo.get("x") is not x or memo["by"] != quantizer or memo["grad"] != torch.is_grad_enabled():
                memo.update(x=x, by=quantizer, grad=torch.is_grad_enabled(), value=quantizer(x))
            return (memo["value"], *args[1:])

        return quantize_input

    return [
        model.get_submodule(name).register_forward_pre_hook(hook(quantizer)) for name, quantizer in quantizers.items()
    ]


def to_json(quantizers: Mapping[str, Quantizer]) -> dict[str, dict[str, Any]]:
    """Quantizers as an export keeps them beside its weights: the scheme's fields; static: scale and zero point, too.

    `outer` has those of the second grid, where there is one.
    """
    return {
        name: {**asdict(q.scheme), **_numbers(q.step), **({"outer": _numbers(q.outer)} if q.outer else {})}
        for name, q in quantizers.items()
    }


def _numbers(step: Step | None) -> dict[str, float]:
    return {} if step is None else {part: float(value) for part, value in step._asdict().items()}


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Quantizer]:
    """What `to_json` wrote."""
    quantizers = {}
    for name, fields in stored.items():
        scheme = Activations(**{k: v for k, v in fields.items() if k not in (*Step._fields, "outer")})
        quantizers[name] = Quantizer(scheme, _step(fields), _step(fields.get("outer", {})))
    return quantizers


def _step(fields: Mapping[str, Any]) -> Step | None:
    if "scale" not in fields:
        return None
    return Step(*(torch.tensor(fields[part], dtype=torch.float32) for part in Step._fields))
