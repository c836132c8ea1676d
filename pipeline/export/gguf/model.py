"""What llama.cpp calls a model's parts: architecture, hyperparameters, tensors, and the order of their rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

FREQUENCIES = "rope_freqs.weight"  # Llama 3.1's factors, which come of the config


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp holds a type of model.

    pairs: whether it turns neighbouring channels of a head together, where transformers turns one half with the other;
    rows of q and k are reordered for it.
    """

    name: MODEL_ARCH
    pairs: bool = False


ARCHITECTURES = {  # by transformers' model_type
    "llama": Architecture(MODEL_ARCH.LLAMA, pairs=True),
    "mistral": Architecture(MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
    "qwen3": Architecture(MODEL_ARCH.QWEN3),
}


def architecture(config: PreTrainedConfig) -> Architecture:
    """Raises:
    ValueError: the model is of a type, or has a rotary embedding or an activation, that is not written into GGUF.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise ValueError(f"{config.model_type} models are not written into a GGUF; {', '.join(ARCHITECTURES)} are")
    rope = _rope(config)
    if rope["rope_type"] not in ROPE:
        raise ValueError(f"its rotary embedding is {rope['rope_type']!r}; a GGUF gets {', '.join(ROPE)}")
    if config.hidden_act != "silu":
        raise ValueError(f"its activation is {config.hidden_act!r}, where llama.cpp computes silu for such a model")
    return known


def context(config: PreTrainedConfig) -> int:
    """The longest text that llama.cpp sees as transformers does: attention there has no sliding window."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def write_config(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write a config's hyperparameters."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    ROPE[rope["rope_type"]](writer, config, rope)


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **(getattr(config, "rope_parameters", None) or {})}


def _linear(writer: GGUFWriter, config: PreTrainedConfig, rope: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])


def _llama3(writer: GGUFWriter, config: PreTrainedConfig, rope: dict[str, Any]) -> None:
    """Llama 3.1's factors of the frequencies, as a tensor of their own."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    turns = old * frequencies / (2 * math.pi)  # within the old context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    writer.add_tensor(FREQUENCIES, (1 / ((1 - smooth) / factor + smooth)).numpy())


ROPE: dict[str, Callable[[GGUFWriter, PreTrainedConfig, dict[str, Any]], None]] = {
    "default": lambda writer, config, rope: None,
    "linear": _linear,
    "llama3": _llama3,
}


def tensor_names(model: PreTrainedModel, keys: list[str]) -> dict[str, str]:
    """llama.cpp's name of each of these tensors of a model's state.

    Raises:
        ValueError: it has none for some of them.
    """
    config = model.config
    names = get_tensor_name_map(architecture(config).name, config.num_hidden_layers)
    named = {key: names.get_name(key, try_suffixes=(".weight", ".bias")) for key in keys}
    unknown = [key for key, name in named.items() if name is None]
    if unknown:
        raise ValueError(f"llama.cpp's {architecture(config).name.name} has no tensors for {unknown[:8]}")
    return {key: name for key, name in named.items() if name is not None}


def in_order(config: PreTrainedConfig, key: str, rows: Tensor) -> Tensor:
    """The rows of a tensor of this name, codes, scales, weights or biases [out, ...], in llama.cpp's order."""
    if not architecture(config).pairs:
        return rows
    if ".q_proj." in f".{key}.":
        heads = config.num_attention_heads
    elif ".k_proj." in f".{key}.":
        heads = config.num_key_value_heads
    else:
        return rows
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
