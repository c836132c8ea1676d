"""What a Hexagon NPU does not hold of a model, and what it asks for instead."""

import re
from collections.abc import Iterator, Mapping

from transformers import PreTrainedModel

from pipeline.knobs.scheme import Activations, KVCache, Weights
from pipeline.models import layout
from pipeline.models.context import context_length

NUMBER = r"\.\d+(?=\.)"  # of a layer, in a module's name
STATIC = 16  # bits of inputs; with those of 8 the outputs would have 8, too
FLOAT = Activations(0)


def problems(
    grids: Mapping[str, Weights], inputs: Mapping[str, Activations], kv_cache: KVCache, outside: frozenset[str]
) -> Iterator[str]:
    """What of a scheme does not fit, and the nearest that does: all of it.

    Args:
        grids, inputs: of the modules that have them. outside: names of embedding and head, which the CPU computes.
    """
    for name in dict.fromkeys([*grids, *inputs]):
        if name not in outside:
            for problem in _of_linear(grids.get(name, Weights(0)), inputs.get(name, FLOAT)):
                yield f"{all_layers(name)}: {problem}"
    if kv_cache.bits:
        yield f"the KV cache has {kv_cache.bits} bits, and is float16 on the NPU; take 0, float"


def _of_linear(weights: Weights, inputs: Activations) -> Iterator[str]:
    if not weights.bits:
        if inputs.bits:
            yield "its weight is float and its input is not; take activations of 0 bits, or a weight of 4 or 8"
        return
    if not weights.symmetric:
        yield "its weight is asymmetric; take a symmetric one"
    if weights.group:
        yield f"its weight has groups of {weights.group}; take group 0, a scale an output channel"
    kind = "float" if not inputs.bits else f"{'dynamic' if inputs.dynamic else 'static'}, of {inputs.bits} bits"
    if inputs.dynamic or inputs.bits != STATIC:
        yield f"its input is {kind}; take static activations of {STATIC} bits"


def all_layers(name: str) -> str:
    """A module's name, with a star in place of its layer's number."""
    return re.sub(NUMBER, ".*", name)


def too_long(model: PreTrainedModel, places: int) -> str:
    """Why a cache of so many places is not for a model; empty where it is."""
    most = context_length(model)
    if most is None or places <= most:
        return ""
    return f"export.qnn_context: {places} tokens are more than the {most} of the model's context; lower it"


def outside(model: PreTrainedModel) -> frozenset[str]:
    """Names of embedding and head, which the CPU computes."""
    return frozenset(part.name for part in (layout.embedding(model), layout.head(model)) if part is not None)
