"""The student: a float model whose linears are fake-quantized once an optimizer step.

Each trained linear's float32 master weight lives here, and the module's own weight holds what its codes stand for, in
the dtype of the forward. The gradient lands on the module's weight and is handed to the master straight through. Frozen
linears hold their calibrated codes from the start and have neither.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.quant.grid import channel_scale, dequantize, grid_range, quantize
from pipeline.quant.model import QuantizedModel, float_tensors


@dataclass
class Student:
    """The fake-quantized model and its float32 masters, by parameter name.

    masters: what the optimizer steps, the trained linears' weights first, then the norms. modules: the parameter that
    the forward reads, by the same name. frozen: linears that keep their codes.
    """

    model: PreTrainedModel
    start: QuantizedModel
    frozen: set[str]
    scale_mode: str
    masters: dict[str, nn.Parameter]
    modules: dict[str, nn.Parameter]

    def scale(self, name: str) -> Tensor:
        """float32 [out, 1]: the calibrated scale, or that of the master's own range."""
        if self.scale_mode == "static":
            return self.start.scales[name]
        return channel_scale(self.masters[f"{name}.weight"].detach(), self.start.weight_bits)

    @torch.no_grad()
    def refresh(self) -> None:
        """Put what the masters stand for into the model, after each optimizer step."""
        for key, master in self.masters.items():
            name = key.removesuffix(".weight")
            if name in self.start.codes:
                scale = self.scale(name)
                self.modules[key].copy_(dequantize(quantize(master, scale, self.start.weight_bits), scale))
            else:
                self.modules[key].copy_(master)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Move the gradients from the model to the masters: the straight-through estimator.

        A static range clips, so the gradient is zero outside it; a range taken from the weight itself never clips.
        """
        low, high = grid_range(self.start.weight_bits)
        for key, master in self.masters.items():
            gradient = self.modules[key].grad
            if gradient is None:
                raise ValueError(f"{key} got no gradient; is it used in the model's forward?")
            master.grad = gradient.float()
            name = key.removesuffix(".weight")
            if name in self.start.codes and self.scale_mode == "static":
                codes = torch.div(master, self.start.scales[name]).round_()
                master.grad.mul_((codes >= low) & (codes <= high))
            self.modules[key].grad = None

    @torch.no_grad()
    def finished(self) -> QuantizedModel:
        """The trained model: codes and scales of the masters, the frozen codes as they were, the rest in float16."""
        codes, scales = dict(self.start.codes), dict(self.start.scales)
        for name in codes.keys() - self.frozen:
            scales[name] = self.scale(name)
            master = self.masters[f"{name}.weight"]
            codes[name] = quantize(master, scales[name], self.start.weight_bits).to(torch.int8)
        floats = float_tensors(self.model, set(codes))
        bits = self.start.weight_bits, self.start.activation_bits
        return QuantizedModel(*bits, codes, scales, dict(self.start.activation_scales), floats)


def prepare(
    model: PreTrainedModel,
    start: QuantizedModel,
    frozen: set[str],
    scale_mode: str,
    train_norms: bool,
    dtype: torch.dtype,
) -> Student:
    """Make a student of a float32 model.

    Args:
        model: gets `start`'s numbers; its linears' weights are cast to `dtype`, the forward's.
        start: the calibrated model; its latent weights become the masters, without a copy.
        frozen: linears that keep their codes.
        scale_mode: static or minmax.
        train_norms: whether the other one-dimensional parameters (norms, biases) learn too.

    Raises:
        ValueError: `start` has no latent weights.
    """
    missing = [name for name in start.codes if name not in frozen and name not in start.latent]
    if missing:
        raise ValueError(f"the calibrated model has no latent weights to train from: {missing[:4]}")
    start.put_into(model)
    masters, modules = {}, {}
    parameters = dict(model.named_parameters())
    for name in start.codes:
        module = model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=name not in frozen)
        if name not in frozen:
            masters[f"{name}.weight"] = nn.Parameter(start.latent[name])
            modules[f"{name}.weight"] = module.weight
    if train_norms:
        for key, parameter in parameters.items():
            if parameter.ndim == 1 and key.removesuffix(".weight") not in start.codes:
                parameter.requires_grad_(True)
                masters[key], modules[key] = nn.Parameter(parameter.detach().clone()), parameter
    student = Student(model, start, frozen, scale_mode, masters, modules)
    student.refresh()
    return student
