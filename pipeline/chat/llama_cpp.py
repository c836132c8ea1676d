"""llama.cpp, by xllamacpp: it renders the chat template in the file, tokenizes, and keeps what it has read."""

import mmap
import re
import secrets
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipeline.chat.engine import Message, Piece, Sampling, TooLong, context_of, full, text_of

FILE = "model.gguf"
SILENT = -1  # verbosity
BATCH = 256  # tokens of a prompt that are read at once; between two batches it can be stopped
TEMPLATE = struct.pack("<Q", len("tokenizer.chat_template")) + b"tokenizer.chat_template"  # a key as GGUF holds it
CONTEXT = re.compile(rb"\.context_length\x04\0\0\0(....)", re.DOTALL)  # of type uint32
TOO_LONG = "exceed_context_size_error"


class LlamaCpp:
    """An `Engine`."""

    runtime = "llama.cpp"

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        """Open a folder's file.

        Args:
            threads, context: 0 leaves them to llama.cpp and to the file.

        Raises:
            ValueError: the file has a shorter context, or llama.cpp does not open it.
            ImportError: xllamacpp is not installed.
        """
        import xllamacpp

        holds, self.templated = metadata(folder / FILE)
        self.context = context_of(context, holds)
        knobs = xllamacpp.CommonParams()
        knobs.model.path, knobs.n_ctx, knobs.n_parallel = str(folder / FILE), self.context, 1
        knobs.n_batch = knobs.n_ubatch = BATCH
        knobs.cpuparams.n_threads = threads or knobs.cpuparams.n_threads
        knobs.warmup, knobs.verbosity = False, SILENT
        knobs.force_pure_content_parser = True  # what the model says, as it says it
        knobs.api_keys = [secrets.token_hex()]  # it listens on the loopback, too: to nobody
        try:
            self._server = xllamacpp.Server(knobs)
            self._server.handle_completions({"prompt": "a", "max_tokens": 1})  # closed before it has begun, it hangs
        except RuntimeError as error:
            raise ValueError(f"llama.cpp does not open {folder / FILE}: {error}") from None

    def answer(self, messages: Sequence[Message], sampling: Sampling, room: int) -> Iterator[Piece]:
        """As `Engine` has it. The server works in a thread of its own, so that Ctrl-C is heard while it reads.

        Raises:
            ValueError: llama.cpp refuses, as where the chat template does not take the conversation.
        """
        request = {
            "stream": True,
            "return_progress": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "samplers": ["temperature", "top_p"],  # and none that llama.cpp adds on its own
            "max_tokens": sampling.max_tokens,
            "reasoning_format": "none",
        }
        request |= {"messages": list(messages)} if self.templated else {"prompt": text_of(messages)}
        chunks, stopped = SimpleQueue[dict[str, Any] | None](), threading.Event()
        worker = threading.Thread(target=self._work, args=(request, chunks, stopped), daemon=True)
        worker.start()
        try:
            yield from self._pieces(chunks, sampling, room)
        finally:
            stopped.set()
            worker.join()

    def _work(self, request: dict[str, Any], chunks: SimpleQueue, stopped: threading.Event) -> None:
        def take(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return stopped.is_set()

        handle = self._server.handle_chat_completions if self.templated else self._server.handle_completions
        try:
            handle(request, take)
        except (RuntimeError, ValueError) as error:
            chunks.put({"error": {"message": str(error).strip().splitlines()[-1].strip()}})
        finally:
            chunks.put(None)

    def _pieces(self, chunks: SimpleQueue, sampling: Sampling, room: int) -> Iterator[Piece]:
        read = 0  # tokens of the prompt
        while (chunk := chunks.get()) is not None:
            if "error" in chunk:
                error = chunk["error"]
                if error.get("type") == TOO_LONG:
                    raise TooLong(error["n_prompt_tokens"], self.context)
                raise ValueError(f"llama.cpp: {error.get('message', error)}")
            read = chunk.get("prompt_progress", {}).get("total", read)
            if read + room > self.context:
                raise TooLong(read, self.context)
            (choice,) = chunk["choices"]
            text = choice["delta"].get("content") if self.templated else choice["text"]
            if text:
                yield Piece(text)
            if choice["finish_reason"] == "length":
                said = chunk["timings"]["predicted_n"]
                yield sampling.at_its_end if said >= sampling.max_tokens else full(self.context)


def metadata(file: Path) -> tuple[int, bool]:
    """The context of a GGUF in tokens, and whether it has a chat template.

    gguf's own reader takes seconds for the strings of a large vocabulary, and llama.cpp takes another template where
    there is none.

    Raises:
        ValueError: it says nothing of a context.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        length = CONTEXT.search(content)
        if length is None:
            raise ValueError(f"{file} does not say how long its context is")
        return struct.unpack("<I", length[1])[0], content.find(TEMPLATE) >= 0
