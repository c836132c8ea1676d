"""What formats refuse that hold a weight as symmetric codes with a scale a row, and no KV cache on a grid."""

import re
from collections.abc import Callable, Iterator, Mapping

from pipeline.knobs.scheme import Activations, KVCache, Weights

NUMBER = r"\.\d+(?=\.)"  # of a layer, in a module's name


def all_layers(name: str) -> str:
    """A module's name, with a star in place of its layer's number."""
    return re.sub(NUMBER, ".*", name)


def problems(
    grids: Mapping[str, Weights],
    inputs: Mapping[str, Activations],
    kv_cache: KVCache,
    of_module: Callable[[str, Weights, Activations], Iterator[str]],
    cache: str,
) -> Iterator[str]:
    """What of a scheme does not fit, and the nearest that does: all of it.

    Args:
        grids, inputs: of the modules that have them. of_module: what does not fit of one, by its name. cache: what the
            KV cache is in the format.
    """
    for name in dict.fromkeys([*grids, *inputs]):
        for problem in of_module(name, grids.get(name, Weights(0)), inputs.get(name, Activations(0))):
            yield f"{all_layers(name)}: {problem}"
    if kv_cache.bits:
        yield f"the KV cache has {kv_cache.bits} bits, and is {cache}; take 0, float"


def of_weight(weights: Weights, inputs: Activations, no_groups: str) -> Iterator[str]:
    """What does not fit of a weight. no_groups: what is said behind the size of its groups."""
    if not weights.bits:
        if inputs.bits:
            yield "its weight is float and its input is not; take activations of 0 bits, or a weight of 4 or 8"
        return
    if not weights.symmetric:
        yield "its weight is asymmetric; take a symmetric one"
    if weights.group:
        yield f"its weight has groups of {weights.group}{no_groups}"
