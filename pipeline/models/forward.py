"""Run a causal language model, or parts of it: hidden states, head, float types, hooks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models import plain_head
from pipeline.models.layout import Linear, backbone, linears


def hidden_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Last hidden states after the final norm, what the head reads: [batch, seq, hidden] from tokens [batch, seq]."""
    return backbone(model)(input_ids=tokens, use_cache=False).last_hidden_state


def head_module(model: PreTrainedModel) -> nn.Linear:
    """The output head.

    Raises:
        ValueError: it is no plain linear.
    """
    module = model.get_output_embeddings()
    if module is None:
        raise ValueError(f"{type(model).__name__} has no output head")
    if getattr(module, "bias", None) is not None:
        raise ValueError(f"the head of {type(model).__name__} has a bias; logits worked out from hidden states lack it")
    return module


def head_weight(model: PreTrainedModel) -> Tensor:
    """The head's weight [vocabulary, hidden].

    Raises:
        ValueError: the logits are not hidden states times this weight (a bias, a cap, a scale come after).
    """
    head = head_module(model)
    plain_head.check(model, head)
    return head.weight


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a knob's name."""
    return getattr(torch, name)


def device() -> torch.device:
    """Where a model runs: a GPU where torch finds one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dtype: str, where: torch.device | str = "cpu") -> AbstractContextManager:
    """The context in which a forward runs on a device: bfloat16 autocast, or nothing for float32."""
    return torch.autocast(torch.device(where).type, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def cast_linears(model: PreTrainedModel, dtype: str) -> None:
    """Hold the weights of the decoder's linears in the forward's dtype, so that autocast need not cast them."""
    for linear in linears(model):
        module = model.get_submodule(linear.name)
        module.weight = nn.Parameter(module.weight.detach().to(torch_dtype(dtype)), requires_grad=False)


def on_layer_inputs(model: PreTrainedModel, watched: list[Linear], see: Callable[[Linear, Tensor], None]) -> list[Any]:
    """Call `see(linear, input)` before each linear runs; returns the hooks' handles."""
    return [
        model.get_submodule(linear.name).register_forward_pre_hook(lambda _, args, linear=linear: see(linear, args[0]))
        for linear in watched
    ]
