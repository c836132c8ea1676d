"""Mixtures of experts: which linears choose among the experts, or weigh them."""

import re

from torch import nn

ROUTER = re.compile(r"(.*_)?router(_.*)?|.*expert\w*_gate")  # router, router_gate, shared_expert_gate


def routers(layers: nn.Module) -> set[str]:
    """Names, in these layers, of the linears that choose among experts or weigh them; they stay in float.

    They have next to no weights, and a choice that flips costs a token its experts. A module on the way to such a
    linear is called a router or an expert's gate, or just `gate` beside experts; a gate_proj is none, nor is
    attention's gate.
    """
    linears = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    return {name for name in linears if _is_router(layers, name)}


def _is_router(layers: nn.Module, name: str) -> bool:
    parts = name.split(".")
    if any(ROUTER.fullmatch(part) for part in parts):
        return True
    holders = [layers.get_submodule(".".join(parts[:i])) for i, part in enumerate(parts) if part == "gate"]
    return any("expert" in beside for holder in holders for beside, _ in holder.named_children())
