"""Which models the ONNX graph computes."""

from transformers import PreTrainedConfig

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # transformers' model types that the graph computes
ROPES = ("default", "linear", "llama3", "yarn")  # rotary embeddings whose frequencies do not change with the length


def problem(config: PreTrainedConfig) -> str:
    """Why the graph cannot compute a model; empty where it can."""
    if config.model_type not in ARCHITECTURES:
        return f"{config.model_type} models are not written into ONNX; {', '.join(ARCHITECTURES)} are"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ROPES:
        return f"its rotary embedding is {rope['rope_type']!r}; ONNX gets {', '.join(ROPES)}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "its rotary embedding turns a part of each head, where the graph turns all of it"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, where the graph computes silu"
    return ""
