"""Load a causal language model, and tell the role of each of its linears.

The roles are the seven of a gated transformer block: q, k, v, o of attention, gate, up, down of the MLP; and Mamba's
in, x, out. They are read off the last parts of a module's name. A fused projection (query_key_value, qkv_proj,
gate_up_proj) has several, each of which is some of its rows. What is not in the tables is quantized all the same, under
the role `other`, but for what chooses among experts.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import loading, plain_head
from pipeline.experts import routers

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
}
NEVER_CALLED = ("mixer.dt_proj",)  # Mamba only reads its weight: no hook sees its input, so it stays in float


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


def load_model(folder: str | Path, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM in a folder, in eval mode, its parameters needing no gradient.

    Raises:
        ValueError: a file is missing, truncated or no model, or its tensors are not exactly the model's.
    """
    try:
        with _packed_linears_need_no_start():
            model = loading.causal_lm(folder, torch_dtype(dtype))
    except ValueError as error:
        raise ValueError(f"no causal language model can be loaded from {folder}: {error}") from error
    return model.eval().requires_grad_(False)


@contextmanager
def _packed_linears_need_no_start() -> Iterator[None]:
    """Around loading: lets transformers (5.23) load Falcon and Mamba with compressed-tensors' packed linears.

    It gives every tensor that the file lacks a random start, and looks for `weight` even where that is packed.
    """
    start = PreTrainedModel._initialize_weights

    def start_others(model: PreTrainedModel, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        try:
            start(model, module, *args, **kwargs)
        except AttributeError:
            if not any(hasattr(part, "weight_packed") for part in module.modules()):
                raise

    with patch.object(PreTrainedModel, "_initialize_weights", start_others):
        yield


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        ValueError: there is none.
    """
    try:
        return loading.tokenizer(folder)
    except ValueError as error:
        raise ValueError(f"no tokenizer can be loaded from {folder}: {error}") from error


def vocabulary(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer knows, in order. They may have holes, and be fewer than the embedding's rows."""
    return sorted(set(tokenizer.get_vocab().values()))


def special_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that stand for no text."""
    added = [token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special]
    return sorted({*tokenizer.all_special_ids, *added})


def no_text(tokenizer: Any) -> list[int]:
    """Ids below the tokenizer's last that stand for no text: special tokens, and holes."""
    known = vocabulary(tokenizer)
    return sorted({*special_tokens(tokenizer), *range(known[-1])} - ({*known} - {*special_tokens(tokenizer)}))


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that end a text, of which a model may have none, one or several."""
    eos = model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def text_decoder(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Name and module of what reads text: of a multimodal model the language model alone, else all but the head."""
    module = model.get_decoder()
    return next((name, other) for name, other in model.named_modules() if other is module)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the text decoder's layers: the one ModuleList whose length is its num_hidden_layers.

    Raises:
        ValueError: there is none.
    """
    wanted = model.config.get_text_config(decoder=True).num_hidden_layers
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
    found, choosing = [], routers(layers)
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(NEVER_CALLED) and name not in choosing:
            rows = _fused_rows(name.rsplit(".", 1)[-1], module, model.config.get_text_config())
            role = "".join(rows) or _role(name)
            found.append(Linear(f"{prefix}.{name}", int(name.split(".")[0]), role, rows))
    if not found:
        raise ValueError(f"{type(model).__name__} has no torch.nn.Linear in {prefix}; nothing to quantize")
    return found


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


def role_names(found: list[Linear]) -> str:
    """The linears' names with the layer's number left out, each once with its role: for error messages."""
    shapes = {re.sub(r"\.\d+\.", ".*.", linear.name): linear.role for linear in found}
    return ", ".join(f"{name} ({role})" for name, role in shapes.items())


def hidden_states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Last hidden states after the final norm, what the head reads: [batch, seq, hidden] from tokens [batch, seq]."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def head_module(model: PreTrainedModel) -> nn.Linear:
    """The output head.

    Raises:
        ValueError: it is no plain linear.
    """
    module = model.get_output_embeddings()
    if module is None or getattr(module, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__} has no plain linear head")
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


def on_layer_inputs(model: PreTrainedModel, found: list[Linear], see: Callable[[Linear, Tensor], None]) -> list[Any]:
    """Call `see(linear, input)` before each linear runs; returns the hooks' handles."""
    return [
        model.get_submodule(linear.name).register_forward_pre_hook(lambda _, args, linear=linear: see(linear, args[0]))
        for linear in found
    ]
