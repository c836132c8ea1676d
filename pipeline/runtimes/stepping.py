"""Greedy decoding in a runtime that computes one step at a time and leaves the loop to its caller.

Nothing here needs torch, which an environment of a runtime's own may not have.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Step = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]
"""Tokens, int64 [sequences, length], and what the step before has kept (None at first) to the logits, float32
[sequences, length, vocabulary], and what the next step needs: keys and values."""


def greedy(step: Step, prompts: np.ndarray, count: int) -> list[list[int]]:
    """The likeliest token after each of int64 [prompts, length], `count` times, all at once, through a text's end."""
    tokens, kept, written = prompts, None, list[np.ndarray]()
    for _ in range(count):
        logits, kept = step(tokens, kept)
        tokens = logits[:, -1:].argmax(axis=-1)
        written.append(tokens)
    continuations: list[list[int]] = np.concatenate(written, axis=1).tolist()
    return continuations
