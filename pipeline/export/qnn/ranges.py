"""The ranges of what linears give, which a Hexagon NPU wants to know beforehand, as those of what they read.

The quantized model runs over some of the text that it was calibrated on. A linear whose input has a second, coarser
grid for what few tokens alone reach (`Quantizer.outer`) is two products there, of what the first grid's range holds and
of what lies beyond; each has a range of its own, so that those tokens do not take the others' resolution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.models import layout
from pipeline.models.forward import hidden_states
from pipeline.quant.activations import Quantizer, beyond_range
from pipeline.quant.grid import Grid, Step
from pipeline.quant.model import QuantizedModel

OUTPUT = Grid(16)  # of what a linear gives
SEQUENCES = 16  # of the training split, that are run
MARGIN = 2.0  # times what was observed that a range holds: one of sixteen bits for texts that reach further
FLOAT16 = 65504.0  # its greatest number
LEAST = 1e-6  # of a range, so that a linear which gives zeros has a scale


@dataclass
class Ranges:
    """Greatest magnitudes that were observed.

    Attributes:
        outputs: of each linear's product, without its bias; with a second grid, of what the first one's range holds.
        beyond: of the product of what lies beyond it, where there is a second grid. passing: of all that passes
            between linears and norms. by_token: of each product, the root mean square of each token's outputs.
    """

    outputs: dict[str, float] = field(default_factory=dict)
    beyond: dict[str, float] = field(default_factory=dict)
    passing: float = 0.0
    by_token: dict[str, list[Tensor]] = field(default_factory=dict)

    def usual(self, name: str) -> float:
        """The root mean square of an output, at the median token."""
        return float(torch.cat(self.by_token[name]).median())

    def steps(self, name: str) -> list[Step]:
        """Of a linear's output on OUTPUT; two where its input has a second grid, of `outputs` and of `beyond`."""
        reached = [greatest[name] for greatest in (self.outputs, self.beyond) if name in greatest]
        scales = [max(MARGIN * most, LEAST) / OUTPUT.range[1] for most in reached]
        return [Step(torch.tensor(scale), torch.tensor(0.0)) for scale in scales]


@torch.no_grad()
def observe(model: PreTrainedModel, quantized: QuantizedModel, tokens: Tensor) -> Ranges:
    """Run a float model with the quantized one's numbers, which it keeps, over int64 [sequences, length].

    Raises:
        ValueError: values pass through the model, or would with a MARGIN, that float16 does not hold.
    """
    undo = quantized.put_into(model)
    try:
        with _watched(model, quantized) as ranges:
            for sequence in tokens.split(1):
                hidden_states(model, sequence)
    finally:
        undo()
    if not MARGIN * ranges.passing < FLOAT16:
        raise ValueError(
            f"values up to {ranges.passing:.3g} pass through the model, and the NPU computes in float16, which holds "
            f"{FLOAT16:.0f}; leave qnn out of export.formats"
        )
    return ranges


@contextmanager
def _watched(model: PreTrainedModel, quantized: QuantizedModel) -> Iterator[Ranges]:
    """What the linears and norms of the decoder's layers give while the context lasts."""
    ranges, (_, layers) = Ranges(), layout.decoder_layers(model)
    prefix, _ = layout.decoder_layers(model)
    handles = []

    def see_linear(name: str) -> Any:
        quantizer = quantized.inputs.get(name)

        def see(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
            ranges.passing = max(ranges.passing, _greatest(output), _greatest(args[0]))
            product = output if module.bias is None else output - module.bias
            beyond = _beyond(args[0], quantizer)
            if beyond is not None:
                outer = functional.linear(beyond, module.weight)
                ranges.beyond[name] = max(ranges.beyond.get(name, 0.0), _greatest(outer))
                product = product - outer
            ranges.outputs[name] = max(ranges.outputs.get(name, 0.0), _greatest(product))
            ranges.by_token.setdefault(name, []).append(product.square().mean(dim=-1).sqrt().flatten())

        return see

    def see_passing(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        values = [part for part in (*args[:1], output) if isinstance(part, Tensor)]
        ranges.passing = max([ranges.passing, *map(_greatest, values)])

    for name, module in layers.named_modules(prefix=prefix):
        is_linear = isinstance(module, nn.Linear)
        handles.append(module.register_forward_hook(see_linear(name) if is_linear else see_passing))
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def _beyond(x: Tensor, quantizer: Quantizer | None) -> Tensor | None:
    """What of values on a quantizer's two grids lies beyond the range of the first."""
    if quantizer is None or quantizer.step is None or quantizer.outer is None:
        return None
    return beyond_range(x, quantizer.step, Grid(quantizer.scheme.bits, quantizer.scheme.symmetric))


def _greatest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
