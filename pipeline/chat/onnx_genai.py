"""onnxruntime-genai.

The tokenizer in the folder is transformers', as the teacher's: it renders the chat template and gives the tokens. One
generator reads the whole conversation, and goes back to where a prompt parts from the one before it.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream

from pipeline.chat.engine import Message, Piece, Sampling, TooLong, context_of, full, text_of
from pipeline.models import saved

CONFIG = "genai_config.json"
BATCH = 256  # tokens of a prompt that are read at once; between two batches it can be stopped


class OnnxGenai:
    """An `Engine`."""

    runtime = "onnxruntime-genai"

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        """Open a folder.

        Args:
            threads, context: 0 leaves them to onnxruntime and to the folder's config.

        Raises:
            ValueError: its context is shorter, it has no tokenizer, or onnxruntime-genai does not open it.
            ImportError: onnxruntime-genai is not installed.
        """
        import onnxruntime_genai

        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        self.context = context_of(context, stored["model"]["context_length"])
        self._tokenizer = saved.load_tokenizer(folder)
        self.templated = self._tokenizer.chat_template is not None
        try:
            config = onnxruntime_genai.Config(str(folder))
            if threads:
                session = {"session_options": {"intra_op_num_threads": threads}}
                config.overlay(json.dumps({"model": {"decoder": session}}))
            self._model = onnxruntime_genai.Model(config)
        except RuntimeError as error:
            raise ValueError(f"onnxruntime-genai does not open {folder}: {error}") from None
        self._genai = onnxruntime_genai
        self._generator: Any = None
        self._sampling: Sampling | None = None

    def answer(self, messages: Sequence[Message], sampling: Sampling, room: int) -> Iterator[Piece]:
        """As `Engine` has it.

        Raises:
            ValueError: the chat template does not take the conversation, or onnxruntime fails.
        """
        try:
            ids = self._ids(messages)
        except TemplateError as error:
            raise ValueError(f"the model's chat template does not take this: {error}") from None
        if len(ids) + room > self.context:
            raise TooLong(len(ids), self.context)
        try:
            yield from self._pieces(ids, sampling)
        except RuntimeError as error:
            self._generator = None
            raise ValueError(f"onnxruntime-genai: {error}") from None

    def _pieces(self, ids: Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        generator = self._read(ids, sampling)
        stream = DecodeStream(skip_special_tokens=True)
        for _ in range(sampling.max_tokens):
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            text = stream.step(self._tokenizer.backend_tokenizer, token)
            if text:
                yield Piece(text)
            if generator.is_done():
                if generator.token_count() >= self.context:
                    yield full(self.context)
                return
        yield sampling.at_its_end

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        """A conversation as tokens, up to where its answer begins."""
        if not self.templated:
            return self._tokenizer(text_of(messages))["input_ids"]
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _read(self, ids: Sequence[int], sampling: Sampling) -> Any:
        """The generator after it has read a prompt, of which it reads only what is new to it.

        At least the last token is read, since it is from there that the next one is drawn. The last two tokens that the
        generator holds are read again: the cache has not the last one yet, and goes back to before its own last alone.
        """
        if self._generator is None or sampling != self._sampling:
            self._generator, self._sampling = self._start(sampling), sampling
        held = self._generator.get_sequence(0) if self._generator.token_count() else []
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held[:-2], ids[:-1], strict=False)))
        if len(held):
            self._generator.rewind_to(common)
        for start in range(common, len(ids), BATCH):
            self._generator.append_tokens(np.array(ids[start : start + BATCH], dtype=np.int32))
        return self._generator

    def _start(self, sampling: Sampling) -> Any:
        parameters = self._genai.GeneratorParams(self._model)
        draws = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        options = draws if sampling.temperature else {"do_sample": False, "top_k": 1}
        parameters.set_search_options(max_length=self.context, num_beams=1, **options)
        return self._genai.Generator(self._model, parameters)
