"""Which models and grids ExecuTorch's XNNPACK holds, and what to take instead of others."""

from collections.abc import Iterator, Mapping

from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.export import llama_like, row_scales
from pipeline.knobs.scheme import Activations, KVCache, Weights
from pipeline.models import layout
from pipeline.models.context import context_length

ROPES = ("default", "linear", "llama3", "yarn")  # rotary embeddings whose frequencies do not change with the length
PLACES = 2048  # of the KV cache, unless the model's context is shorter
NEAREST = "W4A16E8H6"


def places(model: PreTrainedModel) -> int:
    """How long a text the program is for, in tokens."""
    return min(PLACES, context_length(model) or PLACES)


def architecture_problem(model: PreTrainedModel) -> str:
    """Why the program cannot compute a model; empty where it can."""
    config = model.config
    shared = llama_like.problem(config, "ExecuTorch", ROPES)
    if shared:
        return shared
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, where the program computes silu"
    window = _window(config)
    if window and window < places(model):
        return f"it has a sliding window of {window} tokens, shorter than the program's {places(model)}"
    return ""


def _window(config: PreTrainedConfig) -> int:
    """The tokens that some layer sees at most; 0: all."""
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else config.model_type == "mistral"
    return (getattr(config, "sliding_window", None) or 0) if slides else 0


def problems(
    model: PreTrainedModel, grids: Mapping[str, Weights], inputs: Mapping[str, Activations], kv_cache: KVCache
) -> Iterator[str]:
    """What of a scheme does not fit, and the nearest that does: all of it.

    Args:
        grids, inputs: of the modules that have them.
    """
    embedding = layout.embedding(model)

    def of_module(name: str, weights: Weights, activations: Activations) -> Iterator[str]:
        is_table = embedding is not None and name == embedding.name
        width = 0 if is_table else model.get_submodule(name).weight.shape[1]
        return (f"{problem}; the nearest scheme is {NEAREST}" for problem in _of_weight(weights, activations, width))

    yield from row_scales.problems(grids, inputs, kv_cache, of_module, "float32 in the program")


def _of_weight(weights: Weights, inputs: Activations, width: int) -> Iterator[str]:
    yield from row_scales.of_weight(weights, inputs, ", whose scales XNNPACK rounds to bfloat16; take group 0")
    if 0 < weights.bits <= 4 and width % 2:
        yield f"it has {width} inputs, an odd number, which XNNPACK multiplies wrongly; leave it in float"
