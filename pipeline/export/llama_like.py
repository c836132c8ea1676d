"""The models that ONNX and mlx-lm get: those built as Llama is, whose graphs are the same but for biases and norms."""

from collections.abc import Sequence

from transformers import PreTrainedConfig

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # transformers' model types


def problem(config: PreTrainedConfig, runtime: str, ropes: Sequence[str]) -> str:
    """Why a model is not written for a runtime; empty where it is.

    Args:
        ropes: types of rotary embedding, as transformers calls them, that the runtime computes.
    """
    if config.model_type not in ARCHITECTURES:
        return f"{config.model_type} models are not written for {runtime}; {', '.join(ARCHITECTURES)} are"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ropes:
        return f"its rotary embedding is {rope['rope_type']!r}; {runtime} gets {', '.join(ropes)}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its rotary embedding turns a part of each head, where {runtime} gets one that turns all of it"
    return ""
