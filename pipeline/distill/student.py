"""The student: a float model whose linears are fake-quantized once an optimizer step.

Each trained linear's float32 master weight lives here, and the module's own weight holds what its codes stand for, in
the dtype of the forward. The gradient lands on the module's weight and is handed to the master straight through. Frozen
linears, and frozen rows of fused ones, hold their calibrated codes from the start and have no master.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.distill.freeze import Frozen
from pipeline.quant import weights
from pipeline.quant.grid import Step
from pipeline.quant.model import FLOAT_DTYPE, QuantizedModel, float_tensors


@dataclass
class Student:
    """The fake-quantized model and its float32 masters, by parameter name.

    masters: what the optimizer steps, the trained linears' weights (of a partly frozen one the trained rows alone),
    then the norms. modules: the parameter that the forward reads, by the same name. trained: of each linear with a
    master, the rows that it stands for (int64; None: all).
    """

    model: PreTrainedModel
    start: QuantizedModel
    trained: dict[str, Tensor | None]
    scale_mode: str
    masters: dict[str, nn.Parameter]
    modules: dict[str, nn.Parameter]

    def step(self, name: str) -> Step:
        """Scales and zero points [rows, n] of a linear's trained rows: as calibrated, or of the master's range."""
        if self.scale_mode == "static":
            return Step(*(_of(part, self.trained[name]) for part in self.start.steps[name]))
        return weights.weight_step(self.masters[f"{name}.weight"].detach(), self.start.schemes[name])

    @torch.no_grad()
    def refresh(self) -> None:
        """Put what the masters stand for into the model, after each optimizer step."""
        for key, master in self.masters.items():
            name = key.removesuffix(".weight")
            if name in self.trained:
                step, scheme = self.step(name), self.start.schemes[name]
                values = weights.dequantize(weights.quantize(master, step, scheme), step, scheme)
                _put(self.modules[key], self.trained[name], values)
            else:
                self.modules[key].copy_(master.to(FLOAT_DTYPE))  # what the export will store

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Move the gradients from the model to the masters: the straight-through estimator.

        A static range clips, so the gradient is zero outside it; a range taken from the weight itself never clips.
        """
        for key, master in self.masters.items():
            gradient = self.modules[key].grad
            if gradient is None:
                raise ValueError(f"{key} got no gradient; is it used in the model's forward?")
            name = key.removesuffix(".weight")
            master.grad = _of(gradient, self.trained.get(name)).float()
            if name in self.trained and self.scale_mode == "static":
                master.grad.mul_(weights.inside(master, self.step(name), self.start.schemes[name]))
            self.modules[key].grad = None

    @torch.no_grad()
    def finished(self) -> QuantizedModel:
        """The trained model: codes and steps of the masters, the frozen codes as they were, the rest in float16."""
        start = self.start
        codes, steps = dict(start.codes), dict(start.steps)
        for name, rows in self.trained.items():
            step, scheme = self.step(name), start.schemes[name]
            mine = weights.quantize(self.masters[f"{name}.weight"], step, scheme).to(codes[name].dtype)
            whole = Step(*(part.clone() for part in steps[name]))
            for part, values in zip(whole, step, strict=True):
                _put(part, rows, values)
            codes[name], steps[name] = _put(codes[name].clone(), rows, mine), whole
        floats = float_tensors(self.model, set(codes))
        return QuantizedModel(dict(start.schemes), codes, steps, dict(start.inputs), start.kv_cache, floats)


def _of(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _put(into: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    if rows is None:
        return into.copy_(values)
    into[rows] = values.to(into.dtype)
    return into


def prepare(
    model: PreTrainedModel,
    start: QuantizedModel,
    frozen: Frozen,
    scale_mode: str,
    train_norms: bool,
    dtype: torch.dtype,
) -> Student:
    """Make a student of a float32 model.

    Args:
        model: gets `start`'s numbers; its linears' weights are cast to `dtype`, the forward's.
        start: the calibrated model; its latent weights become the masters, without a copy. The head keeps its codes.
        frozen: linears, or rows of them, that keep their codes.
        scale_mode: static or minmax.
        train_norms: whether the other one-dimensional parameters (norms, biases) learn too.

    Raises:
        ValueError: `start` has no latent weights.
    """
    head = model.get_output_embeddings()
    inner = {name for name in start.codes if model.get_submodule(name) is not head}
    missing = [name for name in inner if frozen.get(name, ...) is not None and name not in start.latent]
    if missing:
        raise ValueError(f"the calibrated model has no latent weights to train from: {sorted(missing)[:4]}")
    start.put_into(model)
    masters, modules, trained = {}, {}, {}
    parameters = dict(model.named_parameters())
    for name in start.codes:
        if name not in inner:
            continue
        module, whole = model.get_submodule(name), name in frozen and frozen[name] is None
        module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=not whole)
        if not whole:
            trained[name] = _others(frozen.get(name), len(start.latent[name]))
            masters[f"{name}.weight"] = nn.Parameter(_of(start.latent[name], trained[name]))
            modules[f"{name}.weight"] = module.weight
    if train_norms:
        for key, parameter in parameters.items():
            if parameter.ndim == 1 and key.removesuffix(".weight") not in start.codes:
                parameter.requires_grad_(True)
                masters[key], modules[key] = nn.Parameter(parameter.detach().clone()), parameter
    student = Student(model, start, trained, scale_mode, masters, modules)
    student.refresh()
    return student


def _others(frozen: Tensor | None, rows: int) -> Tensor | None:
    """The rows of a linear that are not frozen; None for all."""
    if frozen is None:
        return None
    free = torch.ones(rows, dtype=torch.bool)
    free[frozen] = False
    return free.nonzero().squeeze(1)
