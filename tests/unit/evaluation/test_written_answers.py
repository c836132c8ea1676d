"""Answers in writing against those of lm-eval's own model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from pipeline.corpus import decoding
from pipeline.evaluation import written_answers
from pipeline.evaluation.prefixes import SharedPrefixes
from pipeline.evaluation.writing import Script
from pipeline.knobs.scheme import KVCache
from pipeline.quant.kv_cache import quantize_cache
from tests import tiny
from tests.families import FAMILIES, family

OWN = [*decoding.WAYS][1]
TEXTS = ("A question", "What is it?", "Q: one and one\nA:", "x", "the longest of all of these questions, by far", "y z")
PLAIN: dict[str, Any] = {"until": [], "do_sample": False, "max_gen_toks": 24}
Requests = list[tuple[str, dict[str, Any]]]


def asked(kind: type[HFLM], model: PreTrainedModel, requests: Requests, batch: int = 4, **options: Any) -> list[str]:
    engine = kind(**{"pretrained": model, "tokenizer": tiny.tokenizer(), "batch_size": batch, **options})
    instances = [Instance("generate_until", {}, request, i) for i, request in enumerate(requests)]
    with torch.inference_mode():
        return engine.generate_until(instances, disable_tqdm=True)


def both(
    model: PreTrainedModel, requests: Requests, batch: int = 4, way: str = OWN, **options: Any
) -> tuple[list[str], list[str]]:
    """Ours, and lm-eval's."""
    ours = asked(SharedPrefixes, model, requests, batch, begin=lambda _: int, way=way, **options)
    return ours, asked(HFLM, model, requests, batch, **options)


@pytest.mark.parametrize("way", decoding.WAYS)
def test_texts_are_those_of_lm_evals_own_model(way: str):
    """Cut where it cuts them: at texts of their own, which free answers have, and at limits of their own."""
    model = tiny.llama()
    free, theirs = both(model, [(text, PLAIN) for text in TEXTS], way=way)
    assert free == theirs
    assert len({*free}) > 3
    requests = [
        (text, PLAIN | {"until": [answer[6:8]] if i % 2 else [], "max_gen_toks": 24 - 8 * (i % 3)})
        for i, (text, answer) in enumerate(zip(TEXTS, free, strict=True))
    ]
    cut, theirs = both(model, requests, way=way)
    assert cut == theirs
    assert all(len(text) < len(answer) for text, answer in zip(cut[1::2], free[1::2], strict=True))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("mamba", "bloom")])
def test_each_family_writes_what_it_writes_for_lm_eval(name: str):
    model = family(name)
    ours, theirs = both(model, [(text, PLAIN | {"max_gen_toks": 12}) for text in TEXTS], batch=1)
    assert ours == theirs


def test_an_answer_ends_at_the_tokens_that_end_a_text():
    """Those of the model, of the tokenizer, and tokens without text that lm-eval's file names among the texts."""
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    engine = SharedPrefixes(lambda _: int, pretrained=model, tokenizer=tokenizer, batch_size=2)
    assert written_answers._ends(engine, ["Q:", "<s>", "a"]) == {2, 1}, "what has text may be a part of other tokens"
    model.generation_config.eos_token_id = [5, 6]
    assert written_answers._ends(engine, []) == {2, 5, 6}
    model.generation_config.eos_token_id = None
    said = tokenizer("x", return_tensors="pt")["input_ids"]
    end = int(model.generate(said, max_new_tokens=4, do_sample=False)[0, -1])
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(end)]})
    free, theirs = both(model, [("x", PLAIN)], tokenizer=tokenizer)
    assert free == theirs
    model.generation_config.eos_token_id = [2, end]
    ours, theirs = both(model, [("x", PLAIN)], tokenizer=tokenizer)
    assert ours == theirs
    assert len(ours[0]) < len(free[0])


def test_keys_and_values_are_quantized_as_the_scheme_says():
    """Alone in a batch, as lm-eval's has padding, which has scales of its own."""
    model = tiny.llama()
    requests = [(text, PLAIN) for text in TEXTS]
    free = asked(SharedPrefixes, model, requests, begin=lambda _: int, way=OWN)
    quantize_cache(model, KVCache(bits=3))
    ours, theirs = both(model, requests, batch=1)
    assert ours == theirs != free
    assert asked(SharedPrefixes, model, requests, begin=lambda _: int) == ours


def test_what_does_not_fit_the_context_is_refused_where_lm_eval_would_cut_it():
    def begin(count: int) -> Callable[[int], object]:
        raise AssertionError("work has begun")

    model = tiny.llama()  # of 512 positions
    fits, long = "a" * 489, "b" * 490
    assert len(asked(SharedPrefixes, model, [(fits, PLAIN)], begin=lambda _: int)) == 1
    with pytest.raises(
        ValueError, match=r"1 of 2 answers .* than the 512 of .* \(the longest 513; the first begins 'b"
    ):
        asked(SharedPrefixes, model, [(fits, PLAIN), (long, PLAIN)], begin=begin)
    with pytest.raises(ValueError, match="only greedy answers are written"):
        asked(SharedPrefixes, model, [("x", PLAIN | {"do_sample": True})], begin=begin)


def test_writing_stops_at_a_text_that_ends_an_answer(monkeypatch: pytest.MonkeyPatch):
    model, scripts = tiny.llama(), list[Script]()
    inner = written_answers.writing.write

    def write(*given: Any) -> list[Script]:
        scripts.extend(inner(*given))
        return scripts[-1:]

    monkeypatch.setattr(written_answers.writing, "write", write)
    (free,) = asked(SharedPrefixes, model, [("x", PLAIN)], begin=lambda _: int)
    (cut,) = asked(SharedPrefixes, model, [("x", PLAIN | {"until": ["", free[6:8]]})], begin=lambda _: int)
    assert cut == free[: free.index(free[6:8])]
    assert len(scripts[1].answer(1)) < len(scripts[0].answer(1))


def test_batches_are_bounded_sorted_and_of_one_kind(monkeypatch: pytest.MonkeyPatch):
    """Whatever the batches, each request has its own answer; the bar is told of each answer once."""
    model, done = tiny.llama(), list[int]()
    requests = [(text, PLAIN | {"max_gen_toks": 8 + 8 * (i % 2)}) for i, text in enumerate(TEXTS * 2)]
    expected = asked(SharedPrefixes, model, requests, batch=1, begin=lambda _: int)
    batches = list[tuple[list[int], int]]()
    inner = written_answers.writing.write

    def write(model: Any, way: str, said: Any, limit: int, *rest: Any) -> list[Script]:
        batches.append(([len(tokens) for (tokens,) in said], limit))
        return inner(model, way, said, limit, *rest)

    monkeypatch.setattr(written_answers.writing, "write", write)
    monkeypatch.setattr(written_answers, "TOKENS", 60)
    ours = asked(SharedPrefixes, model, requests, batch=3, begin=lambda count: done.append(-count) or done.append)
    assert ours == expected
    assert sorted(length for lengths, _ in batches for length in lengths) == sorted(len(text) for text in TEXTS * 2)
    assert all(lengths == sorted(lengths, reverse=True) for lengths, _ in batches)
    assert all(len(lengths) * (lengths[0] + limit) <= 60 or len(lengths) == 1 for lengths, limit in batches)
    assert max(len(lengths) for lengths, _ in batches) == 3
    assert done[0] == -len(requests) == -sum(done[1:])
    assert min(done[1:]) > 0
