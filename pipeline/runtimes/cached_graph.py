"""What a graph with a KV cache is fed, as `export` writes it into ONNX: names and shapes are those of each runtime."""

from collections.abc import Mapping

import numpy as np

PAST, PRESENT, LOGITS = "past_key_values", "present", "logits"
Arrays = dict[str, np.ndarray]


def inputs(
    tokens: np.ndarray, caches: Mapping[str, tuple[int, int]], before: Mapping[str, np.ndarray] | None
) -> Arrays:
    """What a step reads.

    Args:
        tokens: int64 [sequences, length]. caches: of each input that is a cache, heads and size of a head. before: the
            outputs of the step before, by name; None at first.
    """
    sequences, length = tokens.shape
    past = {
        name: np.zeros((sequences, heads, 0, size), np.float32)
        if before is None
        else before[name.replace(PAST, PRESENT)]
        for name, (heads, size) in caches.items()
    }
    read = next(iter(past.values())).shape[2]
    positions = np.broadcast_to(np.arange(read, read + length), tokens.shape)
    mask = np.ones((sequences, read + length), dtype=np.int64)
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **past}
