"""The student: a float model whose linears are fake-quantized once an optimizer step.

Each trained linear's float32 master weight lives here, and the module's own weight holds what its codes stand for, in
the dtype of the forward. The gradient lands on the module's weight and is handed to the master straight through, and to
the scale, where scales are learned. Frozen linears, and frozen rows of fused ones, hold their calibrated codes from the
start and have no master.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.distill.parallel import Processes, local
from pipeline.models import forward
from pipeline.quant import weights
from pipeline.quant.grid import Step, stored_dtype, stored_scale
from pipeline.quant.model import QuantizedModel, float_tensors, stored_float


@dataclass(frozen=True)
class Learns:
    """What learns beside the weights that are not frozen, and how scales are found.

    scale: static (as calibrated) | minmax (of the master's range, at each step, as LLM-QAT does) | learned (LSQ,
    1902.08153). norms: the one-dimensional parameters (norms, biases) of the text decoder and the head, which a text
    gives gradients. embeddings: the embedding, and the head where it is not quantized.
    """

    scale: str = "static"
    norms: bool = True
    embeddings: bool = False


class Rows(NamedTuple):
    """A linear's trained rows, int64 (None: all): among all of its rows, and among those that this process holds."""

    of_all: Tensor | None
    here: Tensor | None


@dataclass
class Student:
    """The fake-quantized model and its float32 masters, by parameter name.

    masters: what the optimizer steps: the trained rows of linears, {linear}.scale where those are learned, then norms
    and embeddings. modules: the parameter that the forward reads, by the same name. trained: of each linear with a
    master, the rows that it stands for. steps: their calibrated scales and zero points [rows, n]. roles: of each such
    linear, its roles and where their rows are in the master (None: everywhere). known: every role that the quantized
    linears have, frozen ones included. inside: which of a linear's values the grid does not clip, where it clips any.
    """

    model: PreTrainedModel
    start: QuantizedModel
    learns: Learns
    processes: Processes
    masters: dict[str, nn.Parameter] = field(default_factory=dict)
    modules: dict[str, nn.Parameter] = field(default_factory=dict)
    trained: dict[str, Rows] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    roles: dict[str, dict[str, Tensor | None]] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    inside: dict[str, Tensor] = field(default_factory=dict)

    def step(self, name: str) -> Step:
        """Scales and zero points [rows, n] of a linear's trained rows: calibrated, learned, or of the master."""
        if self.learns.scale == "minmax":
            master = self.masters[f"{name}.weight"].detach()
            return weights.weight_step(master, self.start.schemes[name], self._scale_dtype(name))
        if self.learns.scale == "learned":
            calibrated, learned = self.steps[name], self.masters[f"{name}.scale"].detach()
            learned = (learned * calibrated.scale.sign()).clamp(min=0)  # a scale keeps its sign
            stored = stored_scale(learned, self._scale_dtype(name))
            return Step(stored * calibrated.scale.sign(), calibrated.zero)
        return self.steps[name]

    def _scale_dtype(self, name: str) -> torch.dtype:
        """What stores a linear's scales: the same for all of its rows, whichever of them this process holds."""
        return stored_dtype(self.start.steps[name].scale)

    @torch.no_grad()
    def refresh(self) -> None:
        """Put what the masters stand for into the model, after each optimizer step."""
        for key, module in self.modules.items():
            name, master = key.removesuffix(".weight"), self.masters[key]
            if name in self.trained:
                step, scheme = self.step(name), self.start.schemes[name]
                codes, inside = weights.quantize_and_tell(master, step, scheme)
                _put(local(module), self.trained[name].here, weights.dequantize(codes, step, scheme))
                self.inside.pop(name, None)
                if inside is not None and self.learns.scale != "minmax":
                    self.inside[name] = inside
            else:
                module.copy_(stored_float(master))  # what the export will store

    def split(self, key: str) -> bool:
        """Whether a master is spread over the processes: linears' weights and scales are, where they are sharded."""
        return self.processes.sharded and key.removesuffix(".weight").removesuffix(".scale") in self.trained

    @torch.no_grad()
    def collect_gradients(self, last_pass: bool = True) -> None:
        """Add the model's gradients to the masters', and take them off the model: the straight-through estimator.

        A static or learned range clips, so the gradient is zero outside it; a range taken from the weight itself never
        clips. That, and the scales' gradients, come with the last of a step's backward passes, once for all of them.
        What only chooses (experts, or tokens to attend to) gets no gradient; its masters get zeros.

        Raises:
            ValueError: nothing got a gradient.
        """
        if all(module.grad is None for module in self.modules.values()):
            raise ValueError(f"{next(iter(self.modules))} got no gradient; is it used in the model's forward?")
        for key, module in self.modules.items():
            gradient, name = module.grad, key.removesuffix(".weight")
            gradient = local(torch.zeros_like(module) if gradient is None else gradient)
            module.grad = None
            if name not in self.trained:
                _add(self.masters[key], gradient.float())
                continue
            master = self.masters[key]
            _add(master, _of(gradient, self.trained[name].here).float())
            if last_pass and self.learns.scale == "learned":
                self.masters[f"{name}.scale"].grad = self._scale_gradient(name, master.grad)  # type: ignore[arg-type]
            if last_pass and name in self.inside:
                master.grad.mul_(self.inside[name])  # type: ignore[union-attr]

    def _scale_gradient(self, name: str, gradient: Tensor) -> Tensor:
        """LSQ's gradient of a linear's scales (1902.08153, eq. 3 and section 2.2): [rows, n].

        By the scale s, s * (clamp(round(w / s) + z) - z) has the derivative round(w / s) - w / s inside the range, and
        the clamped code less z outside it. All is divided by sqrt(N Q), N the elements that share the scale, Q the
        greatest code, which makes it about as large against the scale as the weights' gradients are against them.
        """
        master, step, scheme = self.masters[f"{name}.weight"].detach(), self.step(name), self.start.schemes[name]
        grid, group = weights.grid_of(scheme), scheme.group or master.shape[1]
        codes = weights.quantize(master, step, scheme)
        ones = Step(torch.ones_like(step.scale), step.zero)
        slope, exact = weights.dequantize(codes, ones, scheme), weights.quotient(master, step)
        inside = self.inside.get(name)
        slope.sub_(exact if inside is None else exact * inside)
        return slope.mul_(gradient).unflatten(1, (-1, group)).sum(dim=2).div_((group * grid.range[1]) ** 0.5)

    @torch.no_grad()
    def finished(self) -> QuantizedModel:
        """The trained model: codes and steps of the masters, the frozen codes as they were, the rest in float16.

        Every process must ask for it, since each may hold some rows only.
        """
        start = self.start
        codes, steps = dict(start.codes), dict(start.steps)
        for name, rows in self.trained.items():
            step, scheme = self.step(name), start.schemes[name]
            mine = weights.quantize(self.masters[f"{name}.weight"].detach(), step, scheme).to(codes[name].dtype)
            codes[name] = _put(codes[name].clone(), rows.of_all, self.processes.gather(mine))
            steps[name] = Step(*(part.clone() for part in steps[name]))
            for part, values in zip(steps[name], step, strict=True):
                _put(part, rows.of_all, self.processes.gather(values))
        floats = {name: values.cpu() for name, values in float_tensors(self.model, set(codes)).items()}
        return QuantizedModel(dict(start.schemes), codes, steps, dict(start.inputs), start.kv_cache, floats)

    def head(self, dtype: torch.dtype) -> Tensor:
        """The head's weight [vocabulary, hidden] in the loss's dtype; differentiable where it learns."""
        return forward.head_module(self.model).weight.to(dtype)


def _add(master: nn.Parameter, gradient: Tensor) -> None:
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)


def _of(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _put(into: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    if rows is None:
        return into.copy_(values)
    into[rows] = values.to(device=into.device, dtype=into.dtype)
    return into
