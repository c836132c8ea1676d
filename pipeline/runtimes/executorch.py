"""ExecuTorch's own runtime, XNNPACK on this machine's processor: what a phone has, but for the kernels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.export.executorch import package
from pipeline.export.executorch.folder import FILE
from pipeline.models import saved
from pipeline.models.loading import reason
from pipeline.runtimes.folder_tokenizer import FromFolder
from pipeline.runtimes.opened import Asked, Opened, Predictions, Speed, timed_alone


class InExecuTorch(FromFolder):
    """A program as an opened export; what it offers is as `Opened` says."""

    def __init__(self, program: Any, tokenizer: Any) -> None:
        self.program, self.tokenizer = program, tokenizer
        told = {name: program.run_method(name, ()) for name in ("get_vocab_size", "get_max_context_len")}
        self.vocabulary: int = told["get_vocab_size"][0]
        self.context: int | None = told["get_max_context_len"][0]
        self.chunk: int = program.run_method("get_max_seq_len", ())[0]

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        for sequence in tokens:
            logits = self._read(sequence, 0)
            yield Predictions(torch.arange(len(logits)), logits)

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        """Through a text's end."""
        return [self._written(prompt, count) for prompt in prompts]

    def speed(self, prompt: Tensor, count: int) -> Speed:
        return timed_alone(self.continuations, prompt, count)

    def close(self) -> None:
        del self.program

    def _written(self, prompt: Tensor, count: int) -> list[int]:
        logits, written = self._read(prompt, 0), list[int]()
        for read in range(len(prompt), len(prompt) + count):
            written.append(int(logits[-1].argmax()))
            if len(written) < count:
                logits = self._read(torch.tensor(written[-1:]), read)
        return written

    def _read(self, text: Tensor, read: int) -> Tensor:
        """Logits [length, vocabulary] of tokens [length] after `read` others, a chunk at a time."""
        logits = []
        for part in text.split(self.chunk):
            (values,) = self.program.forward((part[None].contiguous(), torch.tensor([read])))
            logits.append(values[0].clone())  # the program writes the next ones into the same memory
            read += len(part)
        return torch.cat(logits)


def open_export(folder: Path, asked: Asked) -> Opened:
    """Open a folder's program.

    Raises:
        ValueError: there is none, ExecuTorch is not installed, or does not load it.
    """
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} has no {FILE}; it is no export for {package.PACKAGE}")
    package.register()
    with package.quietly():
        from executorch.extension.pybindings import portable_lib

    try:
        portable_lib._unsafe_reset_threadpool(asked.threads)
        program = portable_lib._load_for_executorch(str(folder / FILE))
        program.forward((torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)))  # loads the rest
    except Exception as error:  # it has no class of its own for a damaged file
        raise ValueError(
            f"{package.PACKAGE} does not load {folder / FILE}, it may be truncated: {reason(error)}"
        ) from None
    return InExecuTorch(program, saved.load_tokenizer(folder))
