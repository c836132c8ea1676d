"""What a scheme gives each linear of a model."""

from transformers import PreTrainedModel

from pipeline.knobs.scheme import HEAD, Activations, Scheme, Weights
from pipeline.models import layout
from pipeline.quant.kv_cache import quantize_cache


def plan(model: PreTrainedModel, scheme: Scheme) -> dict[layout.Linear, tuple[Weights, Activations]]:
    """What each of the decoder's linears gets, and the head, if an override names it.

    Raises:
        ValueError: what of the scheme does not fit this model: all of it.
    """
    head = layout.head(model)
    linears = [*layout.linears(model), *([head] if head else [])]
    known = [(linear.name, linear.role) for linear in linears]
    parts = {part for linear in linears for part in linear.rows}
    problems = [
        f"scheme.overrides: nothing is called {match!r}; the model has {layout.role_names(linears)}"
        for match in scheme.unmatched(known)
        if match not in parts
    ]
    planned = {}
    for linear in linears:
        weights, activations = scheme.of(linear.name, linear.role)
        width, shape = model.get_submodule(linear.name).in_features, layout.role_names([linear])
        if weights.bits and weights.group and width % weights.group:
            problems.append(f"scheme: a group of {weights.group} does not divide the {width} inputs of {shape}")
        if linear.role == HEAD and activations.bits:
            problems.append(f"scheme.overrides: the input of {shape} stays in float; leave out its activations")
        problems += [
            f"scheme.overrides: {override.match!r} is only part of {shape}; name the module, whose parts share a grid"
            for override in scheme.overrides
            if override.match in linear.rows
        ]
        if linear.role != HEAD or weights.bits:
            planned[linear] = weights, activations
    if scheme.kv_cache.bits:
        try:
            quantize_cache(model, scheme.kv_cache)()
        except ValueError as error:
            problems.append(f"scheme: {error}")
    if not any(weights.bits for weights, _ in planned.values()):
        problems.append("scheme: no weight is quantized; give scheme.weights.bits, or an override")
    if problems:
        raise ValueError(f"the scheme does not fit {type(model).__name__}:\n  " + "\n  ".join(dict.fromkeys(problems)))
    return planned
