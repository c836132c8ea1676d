"""Which models the ONNX graph computes."""

from transformers import PreTrainedConfig

from pipeline.export import llama_like
from pipeline.knobs.scheme import KVCache

ROPES = ("default", "linear", "llama3", "yarn")  # rotary embeddings whose frequencies do not change with the length


def problem(config: PreTrainedConfig) -> str:
    """Why the graph cannot compute a model; empty where it can."""
    shared = llama_like.problem(config, "ONNX", ROPES)
    if shared:
        return shared
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, where the graph computes silu"
    return ""


def cache_problem(scheme: KVCache) -> str:
    """Why the graph, whose cache keeps each token as it was written, cannot have this scheme; empty where it can."""
    if scheme.bits and scheme.keys == "channel":
        return "its keys have a scale a channel, found when a block of tokens is whole; take kv_cache.keys token"
    return ""
