"""Run a decoder one layer at a time over the calibration tokens, so that memory holds the activations of one layer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration.arguments import Arguments, collect
from pipeline.calibration.gram import add_gram, mirror
from pipeline.calibration.observers import Observed
from pipeline.models import forward, layout


@dataclass
class Inputs:
    """What a linear reads over the valid calibration tokens X [tokens, in].

    hessian: X^T X, float32 [in, in], each token by its weight, if it has one. absmax, mean_abs: of each input channel,
    float32 [in].
    """

    hessian: Tensor
    absmax: Tensor
    mean_abs: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, width: int) -> "Inputs":
        """Of no tokens yet."""
        return cls(torch.zeros(width, width), torch.zeros(width), torch.zeros(width))

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Take in float32 rows [tokens, in]. `finish` makes the Hessian whole.

        weights: of each token in the Hessian, float32 [tokens]; None: all are 1.
        """
        scaled = rows if weights is None else rows * weights.sqrt()[:, None]
        add_gram(self.hessian, scaled)
        magnitudes = rows.abs()
        self.absmax = torch.maximum(self.absmax, magnitudes.amax(dim=0))
        self.mean_abs += magnitudes.sum(dim=0)
        self.tokens += len(rows)

    def finish(self) -> None:
        """Once all rows are in."""
        self.hessian = mirror(self.hessian)
        self.mean_abs /= max(1, self.tokens)


@dataclass
class Runner:
    """The inputs of the layer that is next: hidden states [batch, length, hidden], a batch each.

    arguments: what else each layer is called with, a batch each. masks: which positions count, bool [batch, length].
    dtype: of the forward's autocast.
    """

    model: PreTrainedModel
    states: list[Tensor]
    arguments: Mapping[nn.Module, list[Arguments]]
    masks: tuple[Tensor, ...]
    dtype: str

    @classmethod
    def start(cls, model: PreTrainedModel, tokens: Tensor, valid: Tensor, batch: int, dtype: str) -> "Runner":
        """Before the first decoder layer.

        Raises:
            ValueError: the model does not run layer by layer.
        """
        states, arguments = collect(model, _batches(tokens, batch), dtype)
        return cls(model, states, arguments, _batches(valid, batch), dtype)

    def call(self, layer: nn.Module, index: int) -> Tensor:
        """Run a layer on one batch; returns its hidden states."""
        with forward.autocast(self.dtype):
            return self.arguments[layer][index].call(layer, self.states[index])

    def gather(
        self, layer: nn.Module, group: list[layout.Linear], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Inputs]:
        """What each linear of the layer reads; linears that read the same tensor share one, unless they weigh it.

        Args:
            weights: by linear, of each position in its Hessian, float32 [sequences, length]; others' are 1.

        Raises:
            ValueError: an input is not finite.
        """
        inputs: dict[str, Inputs] = {}
        current = {"batch": 0}
        previous: dict[str, Any] = {"x": None, "name": ""}
        sizes = [len(mask) for mask in self.masks]
        split = {name: by_position.split(sizes) for name, by_position in (weights or {}).items()}

        def see(linear: layout.Linear, x: Tensor) -> None:
            weighed, batch = split.get(linear.name), current["batch"]
            if previous["x"] is x and weighed is None:
                inputs[linear.name] = inputs[previous["name"]]
                return
            if weighed is None:
                previous.update(x=x, name=linear.name)
            rows = self._rows(x, batch)
            shares = None if weighed is None else weighed[batch][self.masks[batch]]
            if shares is not None and len(shares) != len(rows):
                shares = None  # its rows are no positions
            inputs.setdefault(linear.name, Inputs.empty(x.shape[-1])).add(rows, shares)

        with _watching(self.model, group, see):
            for index in range(len(self.states)):
                current["batch"] = index
                self.call(layer, index)
                previous["x"] = None
        for linear_inputs in {id(values): values for values in inputs.values()}.values():  # each once, if shared
            linear_inputs.finish()
        refuse_nonfinite({name: values.absmax.amax() for name, values in inputs.items()})
        return inputs

    def advance(self, layer: nn.Module, group: list[layout.Linear], histograms: set[str]) -> dict[str, Observed]:
        """Run the layer and step to the next one; returns what was seen of each linear's input.

        Args:
            histograms: the linears whose values are counted too, which takes another run of the layer.

        Raises:
            ValueError: an input is not finite.
        """
        observed = {linear.name: Observed() for linear in group}
        current = {"batch": 0}
        with _watching(
            self.model, group, lambda linear, x: observed[linear.name].see_range(self._rows(x, current["batch"]))
        ):
            outputs = []
            for index in range(len(self.states)):
                current["batch"] = index
                outputs.append(self.call(layer, index))
        called = {name: o for name, o in observed.items() if not o.greatest < o.least}  # holds for NaN, too
        refuse_nonfinite({name: o.greatest - o.least for name, o in called.items()})
        counted = [linear for linear in group if linear.name in histograms]
        if counted:
            with _watching(
                self.model, counted, lambda linear, x: observed[linear.name].see_values(self._rows(x, current["batch"]))
            ):
                for index in range(len(self.states)):
                    current["batch"] = index
                    self.call(layer, index)
        self.states = outputs
        return observed

    def _rows(self, x: Tensor, index: int) -> Tensor:
        """The valid rows of a linear's input [..., in]: float32 [tokens, in]; all rows, where they are no positions."""
        rows, mask = x.flatten(0, -2), self.masks[index]
        return (rows if len(rows) != mask.numel() or bool(mask.all()) else rows[mask.flatten()]).float()


def _batches(rows: Tensor, batch: int) -> tuple[Tensor, ...]:
    """The first row alone, which checks of a layer run on, then `batch` at a time."""
    return (rows[:1], *rows[1:].split(batch)) if len(rows) > 1 else (rows,)


def refuse_nonfinite(tops: dict[str, Tensor]) -> None:
    """Raises ValueError if the largest magnitude of a linear's input, by the linear's name, is not finite."""
    bad = [name for name, top in tops.items() if not bool(top.isfinite())]
    if bad:
        raise ValueError(f"the input of {bad[0]} is not finite on the calibration tokens; is the teacher sound?")


@contextmanager
def _watching(
    model: PreTrainedModel, group: list[layout.Linear], see: Callable[[layout.Linear, Tensor], None]
) -> Iterator[None]:
    handles = forward.on_layer_inputs(model, group, see)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
