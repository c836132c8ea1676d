"""A tiny random causal LM of each family that the pipeline knows: what differs is the layout, not the size."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GlmConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    StableLmConfig,
)

from tests import tiny

GROUPED = {"num_key_value_heads": 2}
HEADS = {"num_key_value_heads": 4}  # one key head a query head
WINDOW = {"sliding_window": 6}  # shorter than the tests' sequences

# Each with four query heads. Vicuna and LongChat are Llama with another rotary embedding.
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, GROUPED),
    "longchat": (LlamaConfig, HEADS | {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}}),
    "mistral": (MistralConfig, GROUPED | WINDOW),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen2-window": (Qwen2Config, HEADS | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, GROUPED | {"head_dim": 16}),
    "gemma": (GemmaConfig, {"num_key_value_heads": 1, "head_dim": 16}),
    "opt": (OPTConfig, {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "stablelm": (StableLmConfig, HEADS | {"use_qkv_bias": True}),
    "stablelm-2": (StableLmConfig, GROUPED | {"use_parallel_residual": True, "qk_layernorm": True}),
    "falcon-7b": (FalconConfig, {"multi_query": True, "parallel_attn": True, "bias": False}),
    "falcon-40b": (FalconConfig, {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}),
    "falcon-rw": (FalconConfig, {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}),
    "bloom": (BloomConfig, {}),
    "gpt-neox": (GPTNeoXConfig, {}),
    "phi3": (Phi3Config, GROUPED),
    "glm": (GlmConfig, GROUPED | {"head_dim": 8, "attention_bias": True}),
    "mamba": (MambaConfig, {"state_size": 4, "time_step_rank": 4}),
}


def family(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the family, float32, in eval mode: 2 layers, 32 wide; biases and norms random, too."""
    kind, options = FAMILIES[name]
    config = kind(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=2,
        initializer_range=0.2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **({"intermediate_size": 64} if kind is not MambaConfig else {}),
        **({"num_attention_heads": 4} if kind is not MambaConfig else {}),
        **options,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def save(folder: Path, name: str) -> Path:
    """Write model and tokenizer in Hugging Face layout; returns the folder."""
    family(name).save_pretrained(folder)
    tiny.save_tokenizer(tiny.tokenizer(), folder)
    return folder


def multimodal(vision_layers: int, seed: int = 0) -> PreTrainedModel:
    """A random Gemma 3 with a vision tower, which stands before its two decoder layers; float32, in eval mode."""
    text = Gemma3TextConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=vision_layers,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=262,
        boi_token_index=260,
        eoi_token_index=261,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
