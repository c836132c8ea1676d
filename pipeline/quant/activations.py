"""Static per-tensor activations on a real integer grid, 16 bits included."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.quant.grid import grid_range, scale_from_absmax


class FakeQuantize(torch.autograd.Function):
    """dequantize(quantize(x)) with the straight-through gradient: identity inside the grid's range, zero outside it.

    The result has x's dtype, or that of the autocast around it, which is what the linear would cast it to.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int) -> Tensor:
        low, high = grid_range(bits)
        codes = torch.div(x.float(), scale).round_()
        least, most = codes.aminmax()
        ctx.dtype, ctx.inside = x.dtype, None
        if least < low or most > high:  # rare at 16 bits: the common case needs no mask and no clamp
            ctx.inside = (codes >= low) & (codes <= high) if ctx.needs_input_grad[0] else None
            codes.clamp_(low, high)
        reader = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return codes.mul_(scale).to(reader)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gradient = grads[0].to(ctx.dtype)
        return gradient if ctx.inside is None else gradient * ctx.inside, None, None


def activation_scale(absmax: Tensor, bits: int) -> Tensor:
    """Static scale of a tensor from the greatest magnitude seen in calibration; float32, as a runtime stores it."""
    return scale_from_absmax(absmax, bits, torch.float32)


def quantize_inputs(model: nn.Module, scales: dict[str, Tensor], bits: int) -> list[Any]:
    """Fake-quantize the input of each named linear from now on; returns the hooks' handles.

    q, k and v (gate and up) read the same tensor: where their scales are equal too, it is quantized once.
    """
    last: dict[str, Any] = {}

    def hook(scale: Tensor) -> Any:
        def quantize_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            if last.get("x") is not x or last["scale"] != scale or last["grad"] != torch.is_grad_enabled():
                value = FakeQuantize.apply(x, scale, bits)
                last.update(x=x, scale=scale, grad=torch.is_grad_enabled(), value=value)
            return (last["value"], *args[1:])

        return quantize_input

    return [model.get_submodule(name).register_forward_pre_hook(hook(scale)) for name, scale in scales.items()]


def read_scales(stored: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Activation scales and bits from the JSON that an export keeps beside its weights."""
    return {name: torch.tensor(scale, dtype=torch.float32) for name, scale in stored["scales"].items()}, stored["bits"]
