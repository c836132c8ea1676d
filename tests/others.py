"""Tiny random models of families whose layers hold more than linears in rows: experts, norms after a linear, states."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GptOssConfig,
    GraniteMoeConfig,
    JambaConfig,
    JetMoeConfig,
    Lfm2Config,
    Llama4TextConfig,
    MiniMaxConfig,
    MixtralConfig,
    NemotronHConfig,
    Olmo2Config,
    OlmoConfig,
    OlmoeConfig,
    OlmoHybridConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    Starcoder2Config,
)

EXPERTS = 6
CHOSEN = {"num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
MIXTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "mixtral": (MixtralConfig, CHOSEN | {"num_local_experts": EXPERTS}),
    "qwen2-moe": (
        Qwen2MoeConfig,
        CHOSEN | {"num_experts": EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "qwen3-moe": (Qwen3MoeConfig, CHOSEN | {"num_experts": EXPERTS, "moe_intermediate_size": 24, "head_dim": 8}),
    "olmoe": (OlmoeConfig, CHOSEN | {"num_experts": EXPERTS}),
    "granite-moe": (GraniteMoeConfig, CHOSEN | {"num_local_experts": EXPERTS}),
    "gpt-oss": (GptOssConfig, CHOSEN | {"num_local_experts": EXPERTS, "head_dim": 16}),
    "jetmoe": (JetMoeConfig, CHOSEN | {"num_local_experts": EXPERTS, "kv_channels": 8}),
    "llama4": (Llama4TextConfig, {"num_local_experts": EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48}),
    "phimoe": (PhimoeConfig, CHOSEN | {"num_local_experts": EXPERTS}),
    "deepseek-v3": (
        DeepseekV3Config,
        CHOSEN
        | LATENT
        | {"n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
        | {"moe_intermediate_size": 24, "num_key_value_heads": 4},
    ),
}
POST_NORMS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "gemma2": (Gemma2Config, {"head_dim": 8}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8}),
    "glm4": (Glm4Config, {"head_dim": 8}),
    "olmo2": (Olmo2Config, {}),
    "gemma4": (
        Gemma4TextConfig,
        {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 259},
    ),
}
HYBRIDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {  # a layer with a state, then one of attention
    "lfm2": (Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
    "olmo-hybrid": (OlmoHybridConfig, {"layer_types": ["linear_attention", "full_attention"]}),
    "bamba": (BambaConfig, {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}),
    "jamba": (JambaConfig, {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "num_experts": 1}),
    "minimax": (
        MiniMaxConfig,
        CHOSEN | {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": EXPERTS, "block_size": 8},
    ),
    "nemotron-h": (
        NemotronHConfig,
        {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1},
    ),
}
DENSE: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "starcoder2": (Starcoder2Config, {}),
    "olmo": (OlmoConfig, {}),
    "cohere": (CohereConfig, {}),
    "opt-350m": (OPTConfig, {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
}


def other(name: str, even_norms: bool = False, **changed: Any) -> PreTrainedModel:
    """A random model, float32, in eval mode: 2 layers, 32 wide; biases and norms random, too, unless norms are even."""
    kind, options = (MIXTURES | POST_NORMS | HYBRIDS | DENSE)[name]
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    config = kind(vocab_size=259, pad_token_id=0, bos_token_id=1, eos_token_id=2, **{**shape, **options, **changed})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1 and not even_norms:
            parameter += 0.2 * torch.randn_like(parameter)
        elif parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=0.2)
    return model
