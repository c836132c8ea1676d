"""The layout of a causal language model: its decoder's layers, and the role of each of its linears.

The roles are the seven of a gated transformer block: q, k, v, o of attention, gate, up, down of the MLP; and Mamba's
in, x, out. They are read off the last parts of a module's name. A fused projection (query_key_value, qkv_proj,
gate_up_proj) has several, each of which is some of its rows. What is not in the tables is quantized all the same, under
the role `other`, but for what chooses among experts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.experts import routers

ROLE_OF_NAME = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",
    "dense": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "fc1": "up",
    "fc2": "down",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
    "mixer.in_proj": "in",
    "mixer.x_proj": "x",
    "mixer.out_proj": "out",
    "mamba.in_proj": "in",
    "mamba.x_proj": "x",
    "mamba.out_proj": "out",
}
NEVER_CALLED = ("mixer.dt_proj", "mamba.dt_proj")  # Mamba and Jamba only read its weight: no hook sees its input


@dataclass(frozen=True)
class Linear:
    """A linear that may be quantized: its module's name, the layer it belongs to, its role.

    A fused projection's role is its parts' joined (`qkv`, `gateup`), and `rows` tells the output rows of each part
    (int64 [rows of the part]); for any other linear `rows` is empty.
    """

    name: str
    layer: int
    role: str
    rows: Mapping[str, Tensor] = field(default_factory=dict, compare=False, hash=False)

    def parts(self) -> Mapping[str, Tensor | slice]:
        """Role to output rows: those of each part, or all of them under the linear's own role."""
        return self.rows or {self.role: slice(None)}


def backbone(model: PreTrainedModel) -> nn.Module:
    """All of a model but its head: what gives the last hidden states.

    Raises:
        ValueError: it holds no model, or several.
    """
    if model.base_model is not model:
        return model.base_model
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]  # Llama 4's prefix names none
    if len(parts) != 1:
        raise ValueError(f"{type(model).__name__} holds {len(parts)} models; which gives the last hidden states?")
    return parts[0]


def text_decoder(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Name and module of what reads text: of a multimodal model the language model alone, else all but the head."""
    module = model.get_decoder()
    if module is model or module is model.get_output_embeddings():  # ModernBERT's decoder calls its head `decoder`
        module = backbone(model)
    return next((name, other) for name, other in model.named_modules() if other is module)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the text decoder's layers: the one ModuleList whose length is its number of layers.

    Raises:
        ValueError: there is none.
    """
    config = model.config.get_text_config(decoder=True)
    wanted = getattr(config, "decoder_layers", config.num_hidden_layers)  # BART's num_hidden_layers are its encoder's
    prefix, decoder = text_decoder(model)
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return f"{prefix}.{name}".removeprefix("."), module
    raise ValueError(f"{type(model).__name__} has no list of {wanted} decoder layers")


def linears(model: PreTrainedModel) -> list[Linear]:
    """Every linear that the decoder's layers call, in the model's order.

    Embeddings and the head are not among them, nor are routers and gates of experts.

    Raises:
        ValueError: the layers hold no torch.nn.Linear.
    """
    prefix, layers = decoder_layers(model)
    quantizable, choosing = [], routers(layers)
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(NEVER_CALLED) and name not in choosing:
            rows = _fused_rows(name.rsplit(".", 1)[-1], module, model.config.get_text_config())
            role = "".join(rows) or _role(name)
            quantizable.append(Linear(f"{prefix}.{name}", int(name.split(".")[0]), role, rows))
    if not quantizable:
        raise ValueError(f"{type(model).__name__} has no torch.nn.Linear in {prefix}; nothing to quantize")
    return quantizable


def _role(name: str) -> str:
    last_two = ".".join(name.split(".")[-2:])
    return ROLE_OF_NAME.get(last_two) or ROLE_OF_NAME.get(name.rsplit(".", 1)[-1], "other")


def _fused_rows(name: str, module: nn.Linear, config: Any) -> dict[str, Tensor]:
    """The output rows of each part of a fused projection; nothing for any other linear.

    Phi-3's qkv_proj and gate_up_proj (GLM's too) hold their parts one after the other. query_key_value holds them head
    by head (Bloom, GPT-NeoX, Falcon-RW), key head by key head with its query heads first (Falcon's new decoder), or,
    under multi-query attention, all queries, then one key and one value head (Falcon-7B).
    """
    if name == "gate_up_proj":
        half = module.out_features // 2
        return _interleaved(1, {"gate": half, "up": half})
    if name not in ("qkv_proj", "query_key_value"):
        return {}
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    blocks = 1
    if name == "query_key_value":
        if getattr(config, "new_decoder_architecture", False):
            key_heads = blocks = config.num_kv_heads
        elif getattr(config, "multi_query", False):
            key_heads = 1
        else:
            key_heads = blocks = heads
    size = module.out_features // (heads + 2 * key_heads)  # of a head
    return _interleaved(
        blocks, {"q": heads // blocks * size, "k": key_heads // blocks * size, "v": key_heads // blocks * size}
    )


def _interleaved(blocks: int, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Rows of each part where every block holds `sizes` rows of each part, one part after the other."""
    rows = torch.arange(blocks * sum(sizes.values())).view(blocks, -1).split(list(sizes.values()), dim=1)
    return {part: mine.reshape(-1) for part, mine in zip(sizes, rows, strict=True)}


def head(model: PreTrainedModel) -> Linear | None:
    """The output head as a linear of layer -1 and role lm_head; None where it is no plain torch.nn.Linear."""
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear):
        return None
    name = next(name for name, other in model.named_modules() if other is module)
    return Linear(name, -1, "lm_head")


def embedding(model: PreTrainedModel) -> Linear | None:
    """The input embedding as a linear of layer -1 and role embedding; None where it is no torch.nn.Embedding."""
    module = model.get_input_embeddings()
    if not isinstance(module, nn.Embedding):
        return None
    name = next(name for name, parameter in model.named_parameters() if parameter is module.weight)
    return Linear(name.removesuffix(".weight"), -1, "embedding")


def tied(model: PreTrainedModel) -> bool:
    """Whether head and embedding are one weight."""
    return head(model) is not None and model.get_output_embeddings().weight is model.get_input_embeddings().weight


def role_names(some_linears: list[Linear]) -> str:
    """The linears' names with the layer's number left out, each once with its role: for error messages."""
    shapes = {re.sub(r"\.\d+\.", ".*.", linear.name): linear.role for linear in some_linears}
    return ", ".join(f"{name} ({role})" for name, role in shapes.items())
