"""Answers that a model writes to lm-eval's requests: greedy, in batches, by the loop that writes all answers here.

The texts are those of lm-eval's own model, which writes by transformers' generate. This loop runs the model as it is,
so keys and values are quantized as the scheme says, and it leaves no prompt without its beginning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from pipeline.evaluation import writing
from pipeline.models import vocabulary

TOKENS = 2**15  # of a batch, prompts and answers, whose keys and values are held


@dataclass(frozen=True)
class Question:
    """text, tokens: what is said to the model. limit: tokens of the answer, at most. until: texts that end it, and are
    no part of it."""

    text: str
    tokens: list[int]
    limit: int
    until: tuple[str, ...]


def question(engine: HFLM, text: str, asked: dict[str, Any]) -> Question:
    """One of lm-eval's requests.

    Args:
        asked: lm-eval's settings of how to write.

    Raises:
        ValueError: they ask for what is not greedy.
    """
    settings = normalize_gen_kwargs(asked, engine.max_gen_toks)
    if settings.get("do_sample"):
        raise ValueError(f"only greedy answers are written; {asked} asks for samples")
    tokens = engine.tok_batch_encode([text])[0][0].tolist()
    return Question(text, tokens, int(settings["max_gen_toks"]), tuple(settings["until"]))


def write(engine: HFLM, way: str, questions: Sequence[Question], advance: Callable[[int], object]) -> list[str]:
    """The answer to each question, without what ends it.

    Args:
        way: a name of decoding.WAYS. advance: called with each number of answers that are written, in part or whole.
    """
    answers = [""] * len(questions)
    for part in _batches(questions, int(engine.batch_size)):
        said, first = [[questions[i].tokens] for i in part], questions[part[0]]
        bar = _Bar(advance, len(part), writing.steps(said, first.limit))
        ends, complete = _ends(engine, first.until), _complete(engine, first.until)
        scripts = writing.write(engine.model, way, said, first.limit, ends, bar.forward, complete)
        for i, script in zip(part, scripts, strict=True):
            answers[i] = postprocess_generated_text(engine.tok_decode(script.answer(1)), list(first.until), None)
        bar.finish()
    return answers


def _batches(questions: Sequence[Question], most: int) -> Iterator[list[int]]:
    """Places of questions that are written to together, the longest first: with the same limits, `most` at most, and
    TOKENS of all at most but of one alone."""
    keys = [(asked.limit, asked.until, len(asked.tokens)) for asked in questions]
    part: list[int] = []
    for i in sorted(range(len(questions)), key=keys.__getitem__, reverse=True):
        if part:
            longest = keys[part[0]][2] + keys[part[0]][0]
            full = len(part) == most or (len(part) + 1) * longest > TOKENS
            if full or keys[i][:2] != keys[part[0]][:2]:
                yield part
                part = []
        part.append(i)
    if part:
        yield part


def _ends(engine: HFLM, until: Sequence[str]) -> set[int]:
    """The tokens that end an answer: the model's, the tokenizer's, and those of `until` that stand for no text."""
    tokenizer = engine.tokenizer
    special = {*vocabulary.special_tokens(tokenizer)}
    named = {token for text in until if (token := tokenizer.get_vocab().get(text)) in special}
    own = {tokenizer.eos_token_id} - {None}
    return {*vocabulary.end_tokens(engine.model), *named, *own}


def _complete(engine: HFLM, until: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether an answer of these tokens holds one of the texts that end it."""
    texts = [text for text in until if text]

    def complete(answer: list[int]) -> bool:
        written = engine.tok_decode(answer) if texts else ""
        return any(text in written for text in texts)

    return complete


class _Bar:
    """Tells of a batch's answers while they grow, a forward at a time, and of all of them at its end."""

    def __init__(self, advance: Callable[[int], object], answers: int, tokens: int) -> None:
        self.advance, self.answers, self.tokens = advance, answers, tokens
        self.read = self.told = 0

    def forward(self, tokens: int) -> None:
        """After a forward over so many tokens of an answer and its question."""
        self.read += tokens
        self._tell(self.answers * self.read // self.tokens)

    def finish(self) -> None:
        """After the last, which comes early where all answers have ended."""
        self._tell(self.answers)

    def _tell(self, answers: int) -> None:
        if answers > self.told:
            self.advance(answers - self.told)
            self.told = answers
