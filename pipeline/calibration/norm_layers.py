"""The norms of a model, RMSNorm and LayerNorm in all their kinds: which modules they are, and how they scale."""

import torch
from torch import nn


def is_norm(module: nn.Module, weightless: bool = False) -> bool:
    """Whether a module is a norm: it has one weight a channel, and no parts.

    weightless: or it has no weights (OLMo's), which its name alone tells.
    """
    if list(module.children()):
        return False
    if weightless and type(module).__name__.endswith("Norm") and not list(module.parameters()):
        return True
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 1


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float:
    """What a norm adds to its weight [channels] before it multiplies: 1 of Gemma's, which at a weight of 0 gives more
    than 0; 0 of others."""
    kept = {name: parameter.clone() for name, parameter in norm.named_parameters()}
    for parameter in norm.parameters():
        parameter.zero_()
    made = norm(torch.arange(len(kept["weight"]), dtype=torch.float32)[None])
    for name, parameter in norm.named_parameters():
        parameter.copy_(kept[name])
    return float(bool(made.any()))
