"""Load a causal language model, and tell the role of each of its linears.

The roles are the seven of a gated transformer block: q, k, v, o of attention, gate, up, down of the MLP. They are read
off the last part of a module's name. What is not in the table is quantized all the same, under the role `other`.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
ROLE_OF_NAME = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "fc1": "up",
    "fc2": "down",
}


@dataclass(frozen=True)
class Linear:
    """A quantized linear: its module's name, the layer it belongs to, its role."""

    name: str
    layer: int
    role: str


def load_model(folder: str | Path, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM in a folder, in eval mode, its parameters needing no gradient.

    Raises:
        ValueError: a file is missing, truncated or no model.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch_dtype(dtype), local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # safetensors and transformers have many error classes for a broken file
        raise ValueError(
            f"no causal language model can be loaded from {folder}: {type(error).__name__}: {error}"
        ) from error
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def special_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that stand for no text."""
    added = [token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special]
    return sorted({*tokenizer.all_special_ids, *added})


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that end a text, of which a model may have none, one or several."""
    eos = model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's layers: the one ModuleList whose length is the config's num_hidden_layers.

    Raises:
        ValueError: there is none.
    """
    wanted = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {wanted} decoder layers")


def linears(model: PreTrainedModel) -> list[Linear]:
    """Every linear inside the decoder's layers, in the model's order. Embeddings and the head are not among them.

    Raises:
        ValueError: the layers hold no torch.nn.Linear.
    """
    prefix, layers = decoder_layers(model)
    found = [
        Linear(f"{prefix}.{name}", int(name.split(".")[0]), ROLE_OF_NAME.get(name.rsplit(".", 1)[-1], "other"))
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no torch.nn.Linear in {prefix}; nothing to quantize")
    return found


def role_names(found: list[Linear]) -> str:
    """The linears' names with the layer's number left out, each once with its role: for error messages."""
    shapes = {re.sub(r"\.\d+\.", ".*.", linear.name): linear.role for linear in found}
    return ", ".join(f"{name} ({role})" for name, role in shapes.items())


def hidden_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Last hidden states after the final norm, what the head reads: [batch, seq, hidden] from tokens [batch, seq]."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def head_weight(model: PreTrainedModel) -> Tensor:
    """The head's weight [vocabulary, hidden].

    Raises:
        ValueError: the logits are not hidden states times this weight (a bias, a cap, a scale come after).
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__} has no plain linear head")
    with torch.no_grad():
        probe = torch.arange(2).reshape(1, 2)
        logits = model(input_ids=probe, use_cache=False).logits.float()
        ours = (hidden_states(model, probe) @ head.weight.T).float()
    if not torch.allclose(logits, ours, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head; this distillation cannot hold that"
        )
    return head.weight


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a knob's name."""
    return getattr(torch, name)


def autocast(dtype: str) -> AbstractContextManager:
    """The context in which a forward runs: bfloat16 autocast on the CPU, or nothing for float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def cast_linears(model: PreTrainedModel, dtype: str) -> None:
    """Hold the weights of the decoder's linears in the forward's dtype, so that autocast need not cast them."""
    for linear in linears(model):
        module = model.get_submodule(linear.name)
        module.weight = nn.Parameter(module.weight.detach().to(torch_dtype(dtype)), requires_grad=False)


def on_layer_inputs(model: PreTrainedModel, found: list[Linear], see: Callable[[Linear, Tensor], None]) -> list[Any]:
    """Call `see(linear, input)` before each linear runs; returns the hooks' handles."""
    return [
        model.get_submodule(linear.name).register_forward_pre_hook(lambda _, args, linear=linear: see(linear, args[0]))
        for linear in found
    ]
