"""Which models and grids mlx-lm holds."""

from transformers import PreTrainedConfig

from pipeline.export import llama_like
from pipeline.knobs.scheme import Weights

ROPES = ("default", "linear", "llama3")
GROUPS = (128, 64, 32)  # inputs that share a scale
BITS = (2, 3, 4, 5, 6, 8)


def architecture_problem(config: PreTrainedConfig) -> str:
    """Why mlx-lm does not compute a model as transformers does; empty where it does."""
    shared = llama_like.problem(config, "mlx-lm", ROPES)
    if shared:
        return shared
    if config.model_type == "qwen3" and config.attention_bias:
        return "its attention has biases, which mlx-lm's qwen3 has no place for"
    heads = config.hidden_size // config.num_attention_heads
    if config.model_type == "qwen2" and (getattr(config, "head_dim", None) or heads) != heads:
        return f"its heads have {config.head_dim} values, where mlx-lm's qwen2 computes with {heads}"
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if getattr(config, "sliding_window", None) and "sliding_attention" in kinds:
        return f"it has a sliding window, which mlx-lm's {config.model_type} does not compute"
    return ""


def grid_problem(scheme: Weights, width: int) -> str:
    """Why mlx cannot hold a weight of this scheme and this many inputs, and what would fit; empty if it can."""
    wanted = scheme.group or width
    if any(wanted % group == 0 for group in GROUPS):
        return ""
    if scheme.group:
        return f"a group of {scheme.group} is no multiple of {GROUPS[-1]}, mlx's smallest; take 32, 64 or 128"
    return f"{width} inputs are no multiple of {GROUPS[-1]}, mlx's smallest group; leave it in float"


def bits_of(scheme: Weights) -> int:
    """The fewest bits of mlx's that hold the codes."""
    return next(bits for bits in BITS if scheme.bits <= bits)


def group_of(scheme: Weights, width: int) -> int:
    """The longest of mlx's groups in which a scale does not change."""
    return next(group for group in GROUPS if (scheme.group or width) % group == 0)
