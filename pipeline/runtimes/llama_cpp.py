"""llama.cpp, through xllamacpp's server on the loopback.

It gives no logits of a prompt, but the log-probabilities of the token after one. So each prefix of a text is a prompt;
the server keeps what it computed of the one before, and a prefix more costs one token. Several texts go in one
request, a slot each, step by step together, so that their products are the same in each run. The likeliest KEPT tokens
are asked for: JSON of the whole vocabulary takes forty times as long. Of SmolLM2's student they give 0.88 of the KL.
"""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.models.loading import reason
from pipeline.runtimes.opened import Asked, Messages, Opened, Predictions, Speed, whole

WEIGHTS = "model.gguf"
KEPT = 256  # log-probabilities at a position
LETTER = "a"  # is drawn after every prefix: of half a character the server tells nothing
SURE = 1000.0  # what is added to its logit, after the log-probabilities were taken
GREEDY: dict[str, Any] = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "return_tokens": True}


class InLlamaCpp:
    """A GGUF that a server has loaded; what it offers is as `Opened` says."""

    def __init__(self, server: Any) -> None:
        self.server: Any = server
        host, _, port = server.listening_address.removeprefix("http://").rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port))
        facts = self._ask("GET", "/v1/models")["data"][0]["meta"]
        self.vocabulary = int(facts["n_vocab"])
        self.context: int | None = int(facts["n_ctx_train"])
        (self.letter,) = (self.ids(LETTER) or [])[-1:]

    def predictions(self, tokens: Tensor) -> Iterator[Predictions]:
        length, kept = tokens.shape[1], min(KEPT, self.vocabulary)
        ids = torch.zeros(len(tokens), length - 1, kept, dtype=torch.int64)
        values = torch.zeros(len(tokens), length - 1, kept)
        options = {"n_predict": 1, "n_probs": kept, "logit_bias": [[self.letter, SURE]], "cache_prompt": True}
        for end in range(1, length):
            for row, answer in enumerate(self._complete(tokens[:, :end], options)):
                likeliest = answer["completion_probabilities"][0]["top_logprobs"]
                ids[row, end - 1] = torch.tensor([token["id"] for token in likeliest])
                values[row, end - 1] = torch.tensor([token["logprob"] for token in likeliest])
        yield from (Predictions(torch.arange(length - 1), v, i) for v, i in zip(values, ids, strict=True))

    def continuations(self, prompts: Tensor, count: int) -> list[list[int]]:
        answers = self._complete(prompts, {**GREEDY, "n_predict": count, "cache_prompt": False})
        return [answer["tokens"] for answer in answers]

    def speed(self, prompt: Tensor, count: int) -> Speed:
        options = {**GREEDY, "n_predict": count, "cache_prompt": False, "ignore_eos": True}
        timings = self._complete(prompt[None], options)[0]["timings"]
        return Speed(timings["prompt_per_second"], timings["predicted_per_second"])

    def ids(self, text: str) -> list[int] | None:
        asked = {"content": text, "add_special": True, "parse_special": True}
        ids: list[int] = self._ask("POST", "/tokenize", asked)["tokens"]
        return ids

    def chat(self, messages: Messages) -> str | None:
        return str(self._ask("POST", "/apply-template", {"messages": messages})["prompt"])

    def close(self) -> None:
        self.connection.close()
        self.server = None  # it stops with its last reference

    def _complete(self, prompts: Tensor, options: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer a prompt of int64 [prompts, length]."""
        answers = self._ask("POST", "/completion", {"prompt": whole(prompts), **options})
        return [answers] if isinstance(answers, dict) else sorted(answers, key=lambda answer: answer["index"])

    def _ask(self, method: Literal["GET", "POST"], path: str, content: dict[str, Any] | None = None) -> Any:
        """Raises:
        ValueError: the server refuses; it says why.
        """
        body = None if content is None else json.dumps(content)
        self.connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = json.loads(self.connection.getresponse().read())
        if isinstance(answer, dict) and "error" in answer:
            raise ValueError(f"llama.cpp refuses {path}: {answer['error'].get('message', answer['error'])}")
        return answer


def open_export(folder: Path, asked: Asked) -> Opened:
    """Load a GGUF, with a slot for each sequence.

    Raises:
        ValueError: there is none, or llama.cpp does not load it.
    """
    import xllamacpp  # here: other runtimes do without it

    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; it is no export for llama.cpp")
    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_parallel, options.n_ctx, options.kv_unified = asked.sequences, asked.sequences * asked.context, False
    for processor in (options.cpuparams, options.cpuparams_batch):
        processor.n_threads, processor.poll = asked.threads, 0  # threads that wait sleep: others may want the cores
    options.warmup, options.verbosity, options.check_tensors = False, -1, True
    try:
        server = xllamacpp.Server(options)
    except RuntimeError as error:
        raise ValueError(f"llama.cpp does not load {file}, it may be truncated or no GGUF: {reason(error)}") from None
    return InLlamaCpp(server)
