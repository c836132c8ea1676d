"""Load a model and its tokenizer from a folder, as a stage saved it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from transformers import PreTrainedModel

from pipeline.models import loading
from pipeline.models.forward import torch_dtype


def load_model(folder: str | Path, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM in a folder, in eval mode, its parameters needing no gradient.

    Raises:
        ValueError: a file is missing, truncated or no model, or its tensors are not exactly the model's.
    """
    try:
        with _packed_linears_need_no_start():
            model = loading.causal_lm(folder, torch_dtype(dtype))
    except ValueError as error:
        raise ValueError(f"no causal language model can be loaded from {folder}: {error}") from error
    return model.eval().requires_grad_(False)


@contextmanager
def _packed_linears_need_no_start() -> Iterator[None]:
    """Around loading: lets transformers (5.23) load Falcon and Mamba with compressed-tensors' packed linears.

    It gives every tensor that the file lacks a random start, and looks for `weight` even where that is packed.
    """
    start = PreTrainedModel._initialize_weights

    def start_others(model: PreTrainedModel, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        try:
            start(model, module, *args, **kwargs)
        except AttributeError:
            if not any(hasattr(part, "weight_packed") for part in module.modules()):
                raise

    with patch.object(PreTrainedModel, "_initialize_weights", start_others):
        yield


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        ValueError: there is none.
    """
    try:
        return loading.tokenizer(folder)
    except ValueError as error:
        raise ValueError(f"no tokenizer can be loaded from {folder}: {error}") from error
