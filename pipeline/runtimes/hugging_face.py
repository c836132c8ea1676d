"""transformers, in float32: weights are codes times scales, exactly, and inputs and KV cache stay in float."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from pipeline.export.sizes import stored_bytes
from pipeline.models import context, memory, saved
from pipeline.runtimes.folder_tokenizer import FromFolder
from pipeline.runtimes.opened import Asked, Opened, Predictions, Speed, timed_alone


class InTransformers(FromFolder):
    """A causal LM of transformers as an opened export; what it offers is as `Opened` says."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.vocabulary: int = model.get_input_embeddings().weight.shape[0]
        self.context = context.context_length(model)

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        yield from (Predictions(torch.arange(len(logits)), logits) for logits in sequence_logits(self.model, tokens))

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        return greedy(self.model, prompts, count)

    def speed(self, prompt: Tensor, count: int) -> Speed:
        return timed_alone(self.continuations, prompt, count)

    def close(self) -> None:
        del self.model
        memory.give_back()


def open_export(folder: Path, asked: Asked) -> Opened:
    """Load an export in float32, unpacked.

    Raises:
        ValueError: it is no whole model, or has no tokenizer.
    """
    if not stored_bytes(folder):
        raise ValueError(f"{folder} holds no weights; it is no export")
    model = saved.load_model(folder)
    next(sequence_logits(model, torch.zeros(1, 1, dtype=torch.int64)))  # unpacks
    return InTransformers(model, saved.load_tokenizer(folder))


@torch.no_grad()
def sequence_logits(model: PreTrainedModel, tokens: Tensor) -> Iterator[Tensor]:
    """float32 [length, vocabulary] of each sequence of int64 [sequences, length]."""
    for sequence in tokens.split(1):
        yield model(input_ids=sequence, use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: Tensor, count: int) -> list[list[int]]:
    """The likeliest token after each of int64 [prompts, length], `count` times, through a text's end.

    What the model's own generation config asks for, a penalty for repetition say, is left out.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=0, max_new_tokens=count, do_sample=False)
    try:
        texts = model.generate(prompts, attention_mask=torch.ones_like(prompts))
    finally:
        model.generation_config = own
    continuations: list[list[int]] = texts[:, prompts.shape[1] :].tolist()
    return continuations
