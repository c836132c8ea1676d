"""Activations on a real integer grid, 16 bits included: static a tensor, or dynamic a token."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.knobs.scheme import Activations
from pipeline.quant.grid import Grid, Step

STEP_DTYPE = torch.float32  # of a runtime's activation scales


@dataclass(frozen=True, eq=False)  # eq is ours, and tensors have no hash to match it
class Quantizer:
    """Quantizes a linear's input: the scheme, and the calibrated scale and zero point (scalars) of a static one."""

    scheme: Activations
    step: Step | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """dequantize(quantize(x)) of [..., width], with the straight-through gradient."""
        grid = Grid(self.scheme.bits, self.scheme.symmetric)
        return FakeQuantize.apply(x, self.step, grid)

    def __eq__(self, other: object) -> bool:
        """Whether it does the same to every x."""
        if not isinstance(other, Quantizer) or self.scheme != other.scheme:
            return False
        if self.step is None or other.step is None:
            return self.step is other.step
        return all(bool(a == b) for a, b in zip(self.step, other.step, strict=True))


class FakeQuantize(torch.autograd.Function):
    """dequantize(quantize(x)) with the straight-through gradient: identity inside the grid's range, zero outside it.

    Without a step, each token (the last dimension) has its own min-max range, which clips nothing. The result has x's
    dtype, or that of the autocast around it, which is what the linear would cast it to.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step | None, grid: Grid) -> Tensor:
        wide, inside = x.float(), None
        mine = grid.step_of(wide, STEP_DTYPE) if step is None else step
        if step is None or not ctx.needs_input_grad[0]:
            codes = grid.quantize(wide, mine)
        else:
            codes, inside = grid.quantize_and_tell(wide, mine)
        ctx.save_for_backward(inside)
        if not grid.symmetric:
            codes.sub_(mine.zero)
        where = x.device.type
        reader = torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else x.dtype
        return codes.mul_(mine.scale).to(reader)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] if inside is None else grads[0] * inside, None, None


def quantize_inputs(model: nn.Module, quantizers: Mapping[str, Quantizer]) -> list[Any]:
    """Fake-quantize the input of each named linear from now on; returns the hooks' handles.

    q, k and v (gate and up) read the same tensor: where they quantize it alike, it is quantized once.
    """
    memo: dict[str, Any] = {}

    def hook(quantizer: Quantizer) -> Any:
        def quantize_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            if memo.get("x") is not x or memo["by"] != quantizer or memo["grad"] != torch.is_grad_enabled():
                memo.update(x=x, by=quantizer, grad=torch.is_grad_enabled(), value=quantizer(x))
            return (memo["value"], *args[1:])

        return quantize_input

    return [
        model.get_submodule(name).register_forward_pre_hook(hook(quantizer)) for name, quantizer in quantizers.items()
    ]


def to_json(quantizers: Mapping[str, Quantizer]) -> dict[str, dict[str, Any]]:
    """Quantizers as an export keeps them beside its weights: the scheme's fields; static: scale and zero point, too."""
    return {
        name: {**asdict(q.scheme), **({} if q.step is None else {k: float(v) for k, v in q.step._asdict().items()})}
        for name, q in quantizers.items()
    }


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Quantizer]:
    """What `to_json` wrote."""
    quantizers = {}
    for name, fields in stored.items():
        step = None
        if "scale" in fields:
            step = Step(*(torch.tensor(fields[part], dtype=torch.float32) for part in Step._fields))
        quantizers[name] = Quantizer(Activations(**{k: v for k, v in fields.items() if k not in Step._fields}), step)
    return quantizers
