"""Which models the ONNX graph computes."""

from transformers import PreTrainedConfig

from pipeline.export import llama_like

ROPES = ("default", "linear", "llama3", "yarn")  # rotary embeddings whose frequencies do not change with the length


def problem(config: PreTrainedConfig) -> str:
    """Why the graph cannot compute a model; empty where it can."""
    shared = llama_like.problem(config, "ONNX", ROPES)
    if shared:
        return shared
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, where the graph computes silu"
    return ""
