"""How much of a text a runtime is asked of that is too slow for all of it."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Sequences, the first positions of each, prompts, and tokens after each."""

    sequences: int
    positions: int
    prompts: int
    tokens: int


SIMULATED = Limits(sequences=1, positions=128, prompts=1, tokens=4)  # minutes, of a model with 135 million weights
