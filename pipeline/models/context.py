"""How many tokens a model's positions hold."""

from transformers import PreTrainedConfig, PreTrainedModel

CONTEXTS = (  # what configs call the longest text that a model's positions hold
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
)  # fmt: skip


def context_length(model: PreTrainedModel) -> int | None:
    """The tokens that a model's positions hold; None where there is no limit.

    ALiBi has none (but MPT, whose code makes its bias for max_seq_len positions), nor has a state space.
    """
    return context_of(model.config)


def context_of(config: PreTrainedConfig) -> int | None:
    """The same of a model of this config."""
    config = config.get_text_config(decoder=True)
    if getattr(config, "alibi", config.model_type == "bloom"):
        return None
    named = (getattr(config, name, None) for name in CONTEXTS)
    length = next((value for value in named if isinstance(value, int) and value > 0), None)
    rope = getattr(config, "rope_parameters", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(length, int(original * factor)) if length and original and factor else length
