"""What a Hexagon NPU does not hold of a model, and what it asks for instead."""

from collections.abc import Iterator, Mapping

from transformers import PreTrainedModel

from pipeline.export import row_scales
from pipeline.knobs.scheme import Activations, KVCache, Weights
from pipeline.models import layout
from pipeline.models.context import context_length

STATIC = 16  # bits of inputs; with those of 8 the outputs would have 8, too


def problems(
    grids: Mapping[str, Weights], inputs: Mapping[str, Activations], kv_cache: KVCache, outside: frozenset[str]
) -> Iterator[str]:
    """What of a scheme does not fit, and the nearest that does: all of it.

    Args:
        grids, inputs: of the modules that have them. outside: names of embedding and head, which the CPU computes.
    """

    def of_module(name: str, weights: Weights, activations: Activations) -> Iterator[str]:
        return iter(()) if name in outside else _of_linear(weights, activations)

    yield from row_scales.problems(grids, inputs, kv_cache, of_module, "float16 on the NPU")


def _of_linear(weights: Weights, inputs: Activations) -> Iterator[str]:
    yield from row_scales.of_weight(weights, inputs, "; take group 0, a scale an output channel")
    if not weights.bits:
        return
    kind = "float" if not inputs.bits else f"{'dynamic' if inputs.dynamic else 'static'}, of {inputs.bits} bits"
    if inputs.dynamic or inputs.bits != STATIC:
        yield f"its input is {kind}; take static activations of {STATIC} bits"


def too_long(model: PreTrainedModel, places: int) -> str:
    """Why a cache of so many places is not for a model; empty where it is."""
    most = context_length(model)
    if most is None or places <= most:
        return ""
    return f"export.qnn_context: {places} tokens are more than the {most} of the model's context; lower it"


def outside(model: PreTrainedModel) -> frozenset[str]:
    """Names of embedding and head, which the CPU computes."""
    return frozenset(part.name for part in (layout.embedding(model), layout.head(model)) if part is not None)
