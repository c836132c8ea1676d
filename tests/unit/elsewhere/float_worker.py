"""A worker in the interpreter of the tests: transformers, asked as a runtime of another environment is."""

import os

import numpy as np
import torch

from pipeline.elsewhere.worker import Request, main
from pipeline.runtimes import hugging_face
from pipeline.runtimes.opened import Asked

LIKELIEST = 64


class InFloat:
    def __init__(self, request: Request) -> None:
        print("loading")  # what a runtime prints is none of its answers
        self.opened = hugging_face.open_export(request.folder, Asked(*request[1:]))
        self.facts = {"vocabulary": self.opened.vocabulary, "context": self.opened.context}

    def predictions(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        (told,) = self.opened.predictions(torch.from_numpy(tokens)[None])
        likeliest = told.values.log_softmax(dim=-1).topk(LIKELIEST)
        return {
            "positions": told.positions.numpy(),
            "values": likeliest.values.numpy(),
            "ids": likeliest.indices.numpy(),
        }

    def continuations(self, prompts: np.ndarray, count: int) -> list[list[int]]:
        return self.opened.continuations(torch.from_numpy(prompts), count)

    def ids(self, text: str) -> list[int] | None:
        if text == "leave":
            print("out of luck", flush=True)
            os._exit(3)
        return self.opened.ids(text)

    def chat(self, messages: list[dict[str, str]]) -> str | None:
        raise RuntimeError("no\n chat")


if __name__ == "__main__":
    main(InFloat)
