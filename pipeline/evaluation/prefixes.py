"""Log-likelihoods as lm-eval's causal model gives them, where what texts begin with alike is read once.

The answers of a multiple-choice item share its question, which is most of the tokens. Texts are put into one row as a
tree: a token attends to those before it in its own text alone, and stands at its place there. A model that takes no
such mask, or gives other log-likelihoods with it, is asked as lm-eval asks it.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from pipeline.corpus import decoding
from pipeline.evaluation import written_answers
from pipeline.models import vocabulary
from pipeline.models.context import context_length
from pipeline.quant.float_signals import float_signals
from pipeline.quant.kv_cache import by_place

Request = tuple[tuple[str, str], list[int], list[int]]
"""Of lm-eval: context and continuation, and the tokens of each."""

TOLERANCE = 1e-3  # of a log-likelihood, as a share of it; rounding in float32 changes less
LEAST = 1e-4  # of a log-likelihood near 0
TOKENS = 1024  # of a forward: a mask, and the time of attention, are of their square
ONE_ITEM = 2 * TOKENS  # where nearly all of them are one text's
DOCUMENT = "<|endoftext|>"


@dataclass(frozen=True)
class Tree:
    """Token sequences, of which those that begin alike share what they begin with.

    tokens, positions: int64 [n]. paths: of each sequence, where its tokens stand.
    """

    tokens: Tensor
    positions: Tensor
    paths: list[list[int]]

    @cached_property
    def attends(self) -> Tensor:
        """To which tokens each one attends, itself included: bool [n, n]."""
        attends = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        for path in self.paths:
            on_path = torch.tensor(path)
            attends[on_path[:, None], on_path] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
        return attends

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Tree":
        """Sequences share what they begin with if they are neighbours, as in lexicographic order."""
        tokens: list[int] = []
        positions: list[int] = []
        paths: list[list[int]] = []
        for sequence in sequences:
            before = paths[-1] if paths else []
            shared = 0
            while shared < min(len(before), len(sequence)) and tokens[before[shared]] == sequence[shared]:
                shared += 1
            paths.append(before[:shared] + list(range(len(tokens), len(tokens) + len(sequence) - shared)))
            tokens += sequence[shared:]
            positions += range(shared, len(sequence))
        return cls(torch.tensor(tokens), torch.tensor(positions), paths)


def opening(tokenizer: Any) -> int | None:
    """The token that an answer without a question follows: the one between documents, where the tokenizer has it; None
    leaves it to lm-eval, which takes the first of a text. Of chat models that is often one that opens a turn."""
    token = tokenizer.get_vocab().get(DOCUMENT)
    return token if token in vocabulary.special_tokens(tokenizer) else None


class SharedPrefixes(HFLM):
    """lm-eval's model, with fewer tokens to read where it is held in float32.

    Args:
        begin: called with the number of requests, once they are known; returns what is called with each number done.
        way: of decoding.WAYS, in which answers are written; empty: with the model's own attention and cache.
        others: lm-eval's.
    """

    def __init__(self, begin: Callable[[int], Callable[[int], object]], way: str = "", **others: Any) -> None:
        super().__init__(max_length=context_length(others["pretrained"]) or sys.maxsize, **others)
        self._begin, self._way = begin, way or [*decoding.WAYS][1]
        self.passed_over = ""
        """Why texts were not put together, if they were not."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each request, and whether greedy decoding would give it."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written to each request, greedily, cut where lm-eval cuts it."""
        questions = [written_answers.question(self, *request.args) for request in requests]
        self._refuse_long([((question.text, ""), question.tokens, [0] * question.limit) for question in questions])
        return written_answers.write(self, self._way, questions, self._begin(len(questions)))

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self._refuse_long(requests)
        advance = self._begin(len(requests))
        order = sorted(range(len(requests)), key=lambda i: requests[i][1] + requests[i][2])
        self.passed_over = self._differs([requests[i] for i in order])
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for part in self._parts(order, [len(context) + len(said) - 1 for _, context, said in requests]):
            asked = [requests[i] for i in part]
            batch_answers = self._plain(asked) if self.passed_over else self._together(asked)
            for i, answer in zip(part, batch_answers, strict=True):
                answers[i] = answer
            advance(len(part))
        return answers

    def _parts(self, order: list[int], sizes: list[int]) -> Iterator[list[int]]:
        """The requests of each batch: as many as asked for, and of one by one so many that they have TOKENS, padded."""
        part: list[int] = []
        for i in order:
            longest = max(sizes[j] for j in (*part, i))
            full = len(part) == self.batch_size or (self.passed_over and (len(part) + 1) * longest > TOKENS)
            if part and full:
                yield part
                part = []
            part.append(i)
        yield part

    def _refuse_long(self, requests: list[Request]) -> None:
        """lm-eval would cut off their beginnings, and score what is left as if it were the item."""
        sizes = [len(context) + len(continuation) - 1 for _, context, continuation in requests]
        long = [text for size, (text, _, _) in zip(sizes, requests, strict=True) if size > self.max_length]
        if long:
            opening = " ".join("".join(long[0]).split())[:60]
            raise ValueError(
                f"evaluate.tasks: {len(long)} of {len(requests)} answers with their questions have more tokens than "
                f"the {self.max_length} of the model's context (the longest {max(sizes)}; the first begins "
                f"{opening!r}); "
                "leave their task out, or the long items out of its file"
            )

    @torch.no_grad()
    def _model_call(self, inps: Tensor, *_: Any, **__: Any) -> Tensor:
        """Logits of token ids, without a cache, which nothing here reads."""
        return self.model(inps, use_cache=False).logits

    def _plain(self, requests: list[Request]) -> list[tuple[float, bool]]:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True)

    def _differs(self, requests: list[Request]) -> str:
        """Why these requests, neighbours in lexicographic order, are not to be put together; empty: they may be.

        The longest and the shortest are compared, each with the one after it; of those of which lm-eval reads four in
        TOKENS, as it makes logits of all tokens. Inputs, keys and values are not quantized then: a token's grid is its
        own or the tensor's, never its neighbours', and rounding to coarse codes hides what is compared.
        """
        if self.model.dtype != torch.float32:
            return f"in {self.model.dtype} rounding hides whether they change each other"
        if by_place(self.model):
            return "keys that have a scale a channel are rounded by their places in a row"
        sizes = [len(context) + len(continuation) for _, context, continuation in requests]
        window = min(decoding.spans(self.model), default=max(sizes))
        if max(sizes) > window:
            return f"the longest has {max(sizes)} tokens, and a window of the model's attention {window}"
        fours = [4 * max(sizes[i : i + 2]) for i in range(len(sizes))]
        fitting = [i for i, tokens in enumerate(fours) if tokens <= TOKENS] or [fours.index(min(fours))]
        ends = {max(fitting, key=sizes.__getitem__), min(fitting, key=sizes.__getitem__)}
        asked = [requests[i] for end in ends for i in (end, end + 1) if i < len(requests)]
        try:
            decoding.require_keys_and_values(self.model)
            with float_signals():
                plain, together = _values(self._plain(asked)), _values(self._together(asked))
        except Exception as error:  # a model's code may fail in any way on what it was not written for
            return str(error).partition("\n")[0] or type(error).__name__
        if not torch.allclose(together, plain, rtol=TOLERANCE, atol=LEAST):
            return f"together they have other log-likelihoods: {together.tolist()} for {plain.tolist()}"
        return ""

    def _together(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Of one forward over a tree, or of several where it has too many tokens for one."""
        tree = Tree.of([(context + continuation)[:-1] for _, context, continuation in requests])
        longest = max(len(path) for path in tree.paths)
        most = max(TOKENS, min(longest * 5 // 4, ONE_ITEM))
        if len(tree.tokens) > min(self.max_length, most) and len(requests) > 1:  # no row is beyond the context
            half = len(requests) // 2
            return self._together(requests[:half]) + self._together(requests[half:])
        paths = [path[-len(ask[2]) :] for path, ask in zip(tree.paths, requests, strict=True)]
        wanted = sorted({node for path in paths for node in path})
        row = {node: i for i, node in enumerate(wanted)}
        log_p = self._logits(tree, torch.tensor(wanted)).log_softmax(dim=-1)  # (wanted, vocabulary)
        answers = []
        for path, (_, _, continuation) in zip(paths, requests, strict=True):
            here, said = log_p[[row[node] for node in path]], torch.tensor(continuation)
            greedy = torch.equal(here.argmax(dim=-1), said)
            answers.append((float(here.gather(1, said[:, None]).sum()), greedy))
        return answers

    def _logits(self, tree: Tree, wanted: Tensor) -> Tensor:
        """The logits of some of a tree's tokens: float32 [wanted, vocabulary]."""
        asked: dict[str, Any] = {}
        if len(tree.tokens) > len(tree.paths[0]):  # else it is one text, however long
            barred = torch.zeros(tree.attends.shape).masked_fill_(~tree.attends, torch.finfo(torch.float32).min)
            asked |= {"attention_mask": barred[None, None], "position_ids": tree.positions[None]}
        only = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        if only:
            asked["logits_to_keep"] = wanted
        logits = self.model(input_ids=tree.tokens[None], use_cache=False, **asked).logits[0]
        return logits if only else logits[wanted]


def _values(answers: list[tuple[float, bool]]) -> Tensor:
    """The log-likelihoods of answers: float32 [n]."""
    return torch.tensor([value for value, _ in answers])
