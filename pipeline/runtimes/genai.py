"""onnxruntime-genai: onnxruntime with its own loop of generation, its own tokenizer and chat template."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models import saved
from pipeline.models.loading import reason
from pipeline.runtimes.opened import Asked, Messages, Opened, Predictions, Speed, timed

CONFIG = "genai_config.json"


class InGenai:
    """A model of onnxruntime-genai as an opened export; what it offers is as `Opened` says."""

    def __init__(self, genai: Any, model: Any, facts: dict[str, Any], templated: bool) -> None:
        self.genai, self.model, self.templated = genai, model, templated
        self.tokenizer = genai.Tokenizer(model)
        self.vocabulary: int = facts["vocab_size"]
        self.context: int | None = facts["context_length"]

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        for sequence in tokens:
            generator = self._after(sequence, 1)
            logits = torch.from_numpy(generator.get_output("logits")[0].astype(np.float32))
            yield Predictions(torch.arange(len(logits)), logits)

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        return [self._written(prompt, count) for prompt in prompts]

    def speed(self, prompt: Tensor, count: int) -> Speed:
        return timed(lambda text, tokens: self._written(text, tokens, through=True), prompt, count)

    def ids(self, text: str) -> list[int] | None:
        return [int(number) for number in self.tokenizer.encode(text)]

    def chat(self, messages: Messages) -> str | None:
        if not self.templated:
            return None
        return str(self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True))

    def close(self) -> None:
        del self.tokenizer, self.model

    def _after(self, prompt: Tensor, count: int, through: bool = False) -> Any:
        """A generator that has read a prompt, int64 [length], and may write `count` tokens, `through` a text's end."""
        most = min(len(prompt) + count, self.context or len(prompt) + count)
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=most, min_length=most if through else 0, do_sample=False)
        generator = self.genai.Generator(self.model, parameters)
        generator.append_tokens(prompt.numpy().astype(np.int32)[None])
        return generator

    def _written(self, prompt: Tensor, count: int, through: bool = False) -> list[int]:
        """Up to `count` tokens after a prompt; it stops at the end of a text, unless it is to go `through`."""
        generator = self._after(prompt, count, through)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(number) for number in generator.get_sequence(0)[len(prompt) :]]


def open_export(folder: Path, asked: Asked) -> Opened:
    """Open a folder by its genai_config.json.

    Raises:
        ValueError: there is none, or onnxruntime-genai does not load what it names.
    """
    import onnxruntime_genai  # here: other runtimes do without it

    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} has no {CONFIG}; it is no export for onnxruntime-genai")
    facts = json.loads(file.read_text(encoding="utf-8"))["model"]
    config = onnxruntime_genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": asked.threads}}}}))
    try:
        model = onnxruntime_genai.Model(config)
    except RuntimeError as error:
        raise ValueError(f"onnxruntime-genai does not load {folder}, it may be truncated: {reason(error)}") from None
    return InGenai(onnxruntime_genai, model, facts, saved.load_tokenizer(folder).chat_template is not None)
