"""mlx-lm, its arithmetic set to float32, so that the file's codes and scales are all that counts.

On a CPU it is slow, some hundred milliseconds a token of a small model; a Mac's GPU is what it is for.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models import saved
from pipeline.models.loading import reason
from pipeline.runtimes import stepping
from pipeline.runtimes.folder_tokenizer import FromFolder
from pipeline.runtimes.opened import Asked, Opened, Predictions, Speed, timed_alone

CONFIG = "config.json"


class InMlx(FromFolder):
    """A model of mlx-lm as an opened export; what it offers is as `Opened` says."""

    def __init__(self, model: Any, tokenizer: Any, config: dict[str, Any]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.vocabulary: int = config["vocab_size"]
        self.context: int | None = config["max_position_embeddings"]

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        for sequence in tokens.split(1):
            logits, _ = self._step(sequence.numpy(), None)
            yield Predictions(torch.arange(logits.shape[1]), torch.from_numpy(logits[0]))

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        return stepping.greedy(self._step, prompts.numpy(), count)

    def speed(self, prompt: Tensor, count: int) -> Speed:
        return timed_alone(self.continuations, prompt, count)

    def close(self) -> None:
        del self.model

    def _step(self, tokens: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """As `stepping.Step` has it; mlx writes keys and values into the cache that it is given."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model) if cache is None else cache
        return np.array(self.model(mx.array(tokens), cache=cache)), cache


def open_export(folder: Path, asked: Asked) -> Opened:
    """Load a folder.

    Raises:
        ValueError: there is none, or mlx-lm does not load it.
    """
    import mlx.core as mx
    import mlx_lm

    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} has no {CONFIG}; it is no export for mlx-lm")
    try:
        model, *_ = mlx_lm.load(str(folder))
    except Exception as error:  # mlx has no class of its own for a damaged file
        raise ValueError(f"mlx-lm does not load {folder}, it may be truncated: {reason(error)}") from None
    model.set_dtype(mx.float32)
    return InMlx(model, saved.load_tokenizer(folder), json.loads(file.read_text(encoding="utf-8")))
