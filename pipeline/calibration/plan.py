"""What a scheme gives each linear of a model, its embedding and its head."""

import math
from collections.abc import Iterator

from transformers import PreTrainedModel

from pipeline.knobs.scheme import Activations, Scheme, Weights
from pipeline.models import layout
from pipeline.quant.kv_cache import quantize_cache


def plan(model: PreTrainedModel, scheme: Scheme) -> dict[layout.Linear, tuple[Weights, Activations]]:
    """What each of the decoder's linears gets, and embedding and head, where they get bits.

    Where the two share a weight and both get bits, it is the embedding's and has the finer grid.

    Raises:
        ValueError: what of the scheme does not fit this model: all of it.
    """
    linears = layout.linears(model)
    planned = {linear: scheme.of(linear.name, linear.role) for linear in linears}
    problems = list(_of_overrides(model, scheme, linears))
    if not any(weights.bits for weights, _ in planned.values()):
        problems.append("scheme: no weight is quantized; give scheme.weights.bits, or an override")
    for kind, module, weights in _vocabulary(model, scheme):
        if module is None:
            problems.append(f"scheme.{kind}: the model has none that is a plain torch module; set its bits to 0")
        else:
            planned[module] = weights, Activations(0)
    problems += [
        f"scheme: a group of {weights.group} does not divide the {width} inputs of {layout.role_names([linear])}"
        for linear, (weights, _) in planned.items()
        if weights.bits and weights.group and (width := _width(model, linear)) % weights.group
    ]
    if scheme.kv_cache.bits:
        try:
            quantize_cache(model, scheme.kv_cache)()
        except ValueError as error:
            problems.append(f"scheme: {error}")
    if problems:
        raise ValueError(f"the scheme does not fit {type(model).__name__}:\n  " + "\n  ".join(dict.fromkeys(problems)))
    return planned


def _of_overrides(model: PreTrainedModel, scheme: Scheme, linears: list[layout.Linear]) -> Iterator[str]:
    """What overrides name that the decoder does not have, or has only as a part of something."""
    parts = {part for linear in linears for part in linear.rows}
    modules = {"embedding": layout.embedding(model), "head": layout.head(model)}
    outside = {name: kind for kind, module in modules.items() if module for name in (module.name, module.role)}
    for match in scheme.unmatched((linear.name, linear.role) for linear in linears):
        if match in outside:
            yield f"scheme.overrides: {match!r} is no linear of the decoder; scheme.{outside[match]} says what it gets"
        elif match not in parts:
            yield f"scheme.overrides: nothing is called {match!r}; the model has {layout.role_names(linears)}"
    for linear in linears:
        for override in scheme.overrides:
            if override.match in linear.rows:
                yield (
                    f"scheme.overrides: {override.match!r} is only part of {layout.role_names([linear])}; name the "
                    "module, whose parts share a grid"
                )


def _vocabulary(model: PreTrainedModel, scheme: Scheme) -> Iterator[tuple[str, layout.Linear | None, Weights]]:
    """What gets bits of embedding and head: its name in the scheme, itself, its grid; one of the two, if it is one."""
    embedding, head = scheme.embedding, scheme.head
    if embedding.bits and head.bits and layout.tied(model):
        finer = max(embedding, head, key=lambda grid: (grid.bits, -(grid.group or math.inf)))
        yield "embedding", layout.embedding(model), finer
        return
    if embedding.bits:
        yield "embedding", layout.embedding(model), embedding
    if head.bits:
        yield "head", layout.head(model), head


def _width(model: PreTrainedModel, linear: layout.Linear) -> int:
    """The input channels of a linear, or of an embedding's rows."""
    return model.get_submodule(linear.name).weight.shape[1]
