"""Signal propagation: what flows forward and backward through each projection, float against quantized.

For each linear, over a few batches of the corpus: the mean square and mean absolute value of its output, the squared
Frobenius norms of dL/dW and of dL/d(output) under the distillation loss ("Oh! We Freeze", 2403.18159), and the
SQNR of its output and of its weight against the float model's. L is the mean over all tokens that count in it, so its
gradient is that of one large batch. The parts of a fused projection are looked at one by one.

Two more compare a quantized model with g, the gradient of the float model's cross-entropy: the cosine of its own
gradient with g, and the first-order sensitivity sum(g^2 dW^2), where dW is the weight's error. g is the float model's,
since the quantized model's own gradient has dW in it already; and of the cross-entropy, since the KL of the float model
to itself has none. What counts in the loss was sampled from the float model (see labels.py), so g is a score: the
expectation of tokens * g^2 is the diagonal of the Fisher information of a token, and tokens / 2 * sum(g^2 dW^2) that
diagonal's part of the KL to come, in nats a token. What a method hides in the correlations of errors (GPTQ does) it
cannot see.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.losses.chunked import LossWeights, distillation_loss
from pipeline.models import forward, layout
from pipeline.quant.grid import sqnr
from pipeline.signals.labels import Text
from pipeline.signals.rescaled import factors
from pipeline.signals.table import FLOAT
from pipeline.signals.tensors import Watch, statistics, valid_rows

Row = tuple[str, int, str, str, str, str, float]


@dataclass
class _Sums:
    """Running sums of one linear's part over the batches."""

    square: float = 0.0
    absolute: float = 0.0
    count: int = 0
    output_gradient: float = 0.0
    noise: float = 0.0
    reference: float = 0.0


@dataclass
class Probe:
    """The float model, and what is kept of it: its gradient g of the cross-entropy by each linear's weight."""

    teacher: PreTrainedModel
    text: Text
    weights: LossWeights
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.linears = layout.linears(self.teacher)

    def float_model(self, advance: Callable[[int], object]) -> list[Row]:
        """The rows of the float model; comes first. `advance` is called after each batch, with its sequences.

        The cross-entropy's weight only scales its gradients, and KL has none, so g is found whatever the weights are.
        """
        rows, self.gradients = self._run(FLOAT, self.teacher, LossWeights(1.0, 0.0, 1.0, self.weights.chunk), advance)
        scale = self.weights.ce**2
        return [(*row[:-1], row[-1] * (scale if row[5] == "gradient_norm_sq" else 1)) for row in rows]

    def quantized(
        self, variant: str, model: PreTrainedModel, rescaled: bool, advance: Callable[[int], object]
    ) -> list[Row]:
        """The rows of a quantized model. rescaled: whether its weights and norms were rescaled against each other."""
        rows, gradients = self._run(variant, model, self.weights, advance)
        for linear in self.linears:
            ours, theirs = (m.get_submodule(linear.name).weight.detach() for m in (model, self.teacher))
            scale = factors(ours, theirs) if rescaled else 1.0
            values = _against_float(linear, ours / scale, theirs, gradients[linear.name] * scale, self.gradients)
            rows += _rows(variant, linear, "weight", values)
        return rows

    def _run(
        self, variant: str, model: PreTrainedModel, weights: LossWeights, advance: Callable[[int], object]
    ) -> tuple[list[Row], dict[str, Tensor]]:
        """Forward and backward over the text: the rows of inputs, outputs, weights and cache, and the gradients."""
        text, sums = self.text, {x.name: {role: _Sums() for role in x.parts()} for x in self.linears}
        theirs = forward.head_weight(self.teacher).detach()
        heads = forward.head_module(model).weight.detach(), theirs
        watch = Watch(model, self.linears, text.tokens.numel())
        for linear in self.linears:
            model.get_submodule(linear.name).weight.requires_grad_(True).grad = None
        for part, mask, labels, counted in text.batches():
            outputs: dict[str, Tensor] = {}
            target = None
            if model is not self.teacher:
                handles = self._keep(outputs)
                with torch.no_grad():
                    target = forward.hidden_states(self.teacher, part)
                _release(handles)
            handles = self._measure(model, mask, outputs, sums)
            with torch.enable_grad(), watch.watching(mask) as extra:
                hidden = layout.backbone(model)(input_ids=part, use_cache=False, **extra).last_hidden_state
                target = hidden.detach() if target is None else target
                distillation_loss(hidden, target, heads, labels, counted, weights, text.predicted).total.backward()
            _release(handles)
            advance(len(part))
        rows: list[Row] = []
        gradients = {}
        for linear in self.linears:
            weight = model.get_submodule(linear.name).weight
            gradients[linear.name] = _gradient(linear, weight, linear.name in watch.inputs)
            weight.requires_grad_(False).grad = None
            rows += self._rows_of(variant, linear, weight, gradients[linear.name], sums[linear.name], watch)
        names = {layer: f"{layout.decoder_layers(model)[0]}.{layer}" for layer, _ in watch.cache}
        for (layer, role), moments in sorted(watch.cache.items()):
            rows += [(variant, layer, role, names[layer], "cache", *pair) for pair in moments.statistics().items()]
        return rows, gradients

    def _keep(self, outputs: dict[str, Tensor]) -> list[Any]:
        """Hook the float model's outputs."""
        return [
            self.teacher.get_submodule(linear.name).register_forward_hook(
                lambda _, __, out, name=linear.name: outputs.update({name: out})
            )
            for linear in self.linears
        ]

    def _measure(
        self, model: PreTrainedModel, mask: Tensor, outputs: dict[str, Tensor], sums: dict[str, dict[str, _Sums]]
    ) -> list[Any]:
        """Hook the outputs of a model and their gradients; `outputs` are the float model's, if there are any."""

        def see(linear: layout.Linear, output: Tensor) -> None:
            value = valid_rows(output.detach(), mask)
            reference = valid_rows(outputs.pop(linear.name), mask) if linear.name in outputs else None
            for role, rows in linear.parts().items():
                _add(sums[linear.name][role], value[:, rows], None if reference is None else reference[:, rows])

            def take(gradient: Tensor) -> None:
                for role, rows in linear.parts().items():
                    sums[linear.name][role].output_gradient += float(gradient[..., rows].square().sum())

            if output.requires_grad:
                output.register_hook(take)

        return [
            model.get_submodule(linear.name).register_forward_hook(lambda _, __, out, linear=linear: see(linear, out))
            for linear in self.linears
        ]

    def _rows_of(
        self,
        variant: str,
        linear: layout.Linear,
        weight: Tensor,
        gradient: Tensor,
        sums: dict[str, _Sums],
        watch: Watch,
    ) -> list[Row]:
        inputs = watch.inputs[linear.name].statistics()
        outputs, weights = {}, {}
        for role, part in linear.parts().items():
            outputs[role] = _output_statistics(sums[role], variant != FLOAT)
            weights[role] = {"gradient_norm_sq": _dot(gradient[part], gradient[part]), **statistics(weight[part])}
        return [
            *_rows(variant, linear, "output", outputs),
            *_rows(variant, linear, "weight", weights),
            *_rows(variant, linear, "input", dict.fromkeys(linear.parts(), inputs)),
        ]


def _gradient(linear: layout.Linear, weight: Tensor, called: bool) -> Tensor:
    """The weight's gradient: zero where its outputs only choose, as those of a sparse attention's indexer do."""
    if weight.grad is None and not called:
        raise ValueError(f"{linear.name} got no gradient; is it used in the model's forward?")
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _add(sums: _Sums, value: Tensor, reference: Tensor | None) -> None:
    sums.square += float(value.square().sum())
    sums.absolute += float(value.abs().sum())
    sums.count += value.numel()
    if reference is not None:
        sums.noise += float((value - reference).square().sum())
        sums.reference += float(reference.square().sum())


def _output_statistics(sums: _Sums, compared: bool) -> dict[str, float]:
    values = {
        "mean_square": sums.square / sums.count,
        "mean_abs": sums.absolute / sums.count,
        "gradient_norm_sq": sums.output_gradient,
    }
    if compared:
        ratio = sums.reference / sums.noise if sums.noise else 1e20
        values["sqnr_db"] = float(np.clip(10 * np.log10(max(ratio, 1e-20)), -200, 200))
    return values


def _against_float(
    linear: layout.Linear, weight: Tensor, reference: Tensor, gradient: Tensor, of_float: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """SQNR of the weight, cosine of its gradient with g, and sum(g^2 dW^2), of each part."""
    by_role = {}
    for role, rows in linear.parts().items():
        ours, theirs, mine, g = weight[rows], reference[rows], gradient[rows], of_float[linear.name][rows]
        norms = (_dot(mine, mine) * _dot(g, g)) ** 0.5
        weighted = (ours - theirs).mul_(g)
        by_role[role] = {
            "sqnr_db": sqnr(theirs, ours),
            "gradient_cosine": _dot(mine, g) / norms if norms else 0.0,
            "first_order": _dot(weighted, weighted),
        }
    return by_role


def _dot(a: Tensor, b: Tensor) -> float:
    """sum(a b), a row's products summed in the tensors' own dtype and the rows in float64."""
    return float((a * b).sum(dim=-1).double().sum())


def _rows(variant: str, linear: layout.Linear, tensor: str, parts: dict[str, dict[str, float]]) -> list[Row]:
    return [
        (variant, linear.layer, role, linear.name, tensor, statistic, value)
        for role, values in parts.items()
        for statistic, value in values.items()
    ]


def _release(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
