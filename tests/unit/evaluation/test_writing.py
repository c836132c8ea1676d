"""Greedy answers, against transformers' own generation; and where a variant leaves them, against its own."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.corpus import decoding
from pipeline.evaluation import detail, dialogues, writing
from pipeline.evaluation.agreement import agreement
from pipeline.knobs.scheme import KVCache
from pipeline.models import head
from pipeline.quant.kv_cache import quantize_cache
from tests import tiny
from tests.unit.evaluation.recorded import random_tokens, recorded

OURS, OWN, NONE = decoding.WAYS
LIMIT = 12


def prompt(length: int, seed: int) -> list[int]:
    return random_tokens(length, seed).tolist()


SAID = [[prompt(9, 1), prompt(4, 2)], [prompt(3, 3), prompt(7, 4)], [prompt(6, 5), prompt(2, 6)]]


def greedy(model: PreTrainedModel, tokens: list[int], ends: list[int], limit: int = LIMIT) -> list[int]:
    """What transformers writes next."""
    ids = torch.tensor([tokens])
    options: dict[str, Any] = {
        "max_new_tokens": limit,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": ends or None,
    }
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(tokens) :].tolist()


@pytest.mark.parametrize("way", decoding.WAYS)
def test_both_answers_are_transformers_own(way: str):
    """Each prompt alone; the second answer stands behind the first, with its tokens."""
    model = tiny.llama()
    likely = greedy(model, SAID[0][0], [])[4]  # a token that ends an answer early, at least the first
    steps: list[int] = []
    scripts = writing.write(model, way, SAID, LIMIT, [likely], steps.append)
    for script, (first, again) in zip(scripts, SAID, strict=True):
        one = greedy(model, first, [likely])
        before = first + one + again
        two = greedy(model, before, [likely])
        assert script.tokens == before + two
        assert script.turns == [0] * len(first) + [1] * len(one) + [0] * len(again) + [2] * len(two)
        assert script.ended == [one[-1] == likely, two[-1] == likely]
        assert script.answer(1) == [token for token in one if token != likely]
    assert scripts[0].ended[0]
    assert not all(ended for script in scripts for ended in script.ended)
    assert steps[0] == min(len(first) for first, _ in SAID), "what all are told is read at once"
    assert sum(steps) < writing.longest(SAID, LIMIT)


def test_what_is_written_in_batches_is_what_is_written_at_once(monkeypatch: pytest.MonkeyPatch):
    model, steps = tiny.llama(), list[int]()
    at_once = writing.write(model, OURS, SAID, LIMIT, [], lambda n: None)
    monkeypatch.setattr(writing, "BATCH", 2)
    assert [script.tokens for script in writing.write(model, OURS, SAID, LIMIT, [], steps.append)] == [
        script.tokens for script in at_once
    ]
    assert sum(steps) == writing.steps(SAID, LIMIT) > writing.longest(SAID, LIMIT)


def test_what_ends_an_answer_is_not_said_again():
    model = tiny.llama()
    written = greedy(model, SAID[0][0], [])
    end = next(token for token in written if token != written[0])
    said = [[SAID[0][0], [end, 5, 6]]]
    (script,) = writing.write(model, NONE, said, LIMIT, [end], lambda n: None)
    own = greedy(model, SAID[0][0], [end])
    assert script.tokens[len(SAID[0][0]) : len(SAID[0][0]) + len(own) + 2] == [*own, 5, 6]
    (script,) = writing.write(model, NONE, said, 1, [end], lambda n: None)  # cut short: it is said
    assert script.tokens[len(SAID[0][0]) + 1 : len(SAID[0][0]) + 4] == [end, 5, 6]


def test_an_answer_that_is_complete_gets_no_more_tokens():
    """Those before are the same; none of them counts as the one that ends it."""
    model, steps = tiny.llama(), list[int]()
    free = writing.write(model, OURS, SAID, LIMIT, [], lambda n: None)
    cut = writing.write(model, OURS, SAID, LIMIT, [], steps.append, lambda answer: len(answer) == 3)
    assert [script.answer(1) for script in cut] == [script.answer(1)[:3] for script in free]
    assert [script.ended for script in cut] == [[False, False]] * len(SAID)
    assert sum(steps) < writing.steps(SAID, LIMIT)


@pytest.mark.parametrize(
    "scheme", [KVCache(2), KVCache(4, group=8, symmetric=False), KVCache(3, keys="channel")], ids=str
)
def test_a_quantized_cache_writes_what_forwards_without_one_say(scheme: KVCache):
    model = tiny.llama()
    plain = writing.write(model, OWN, SAID, LIMIT, [], lambda n: None)
    quantize_cache(model, scheme)
    cached, anew = (writing.write(model, way, SAID, LIMIT, [], lambda n: None) for way in (OWN, NONE))
    assert [script.tokens for script in cached] == [script.tokens for script in anew]
    assert [script.tokens for script in cached] != [script.tokens for script in plain]


def test_a_conversation_that_begins_with_nothing_is_refused():
    with pytest.raises(ValueError, match="begins with no token"):
        writing.write(tiny.llama(), NONE, [[[], [1]]], LIMIT, [], lambda n: None)


@pytest.mark.parametrize("scale", [1.0, 1.002, 1.02])
def test_a_variant_leaves_where_its_own_greedy_answer_does(scale: float):
    """The first other token of two answers that were both written, by reading one of them."""
    teacher, student = tiny.llama(), tiny.llama()
    noise = torch.Generator().manual_seed(0)
    for parameter in student.parameters():
        parameter.data += (scale - 1) * torch.randn(parameter.shape, generator=noise)
    firsts = [[prompt(5 + i % 3, 10 + i)] for i in range(12)]
    talks = dialogues.answered(teacher, OURS, firsts, LIMIT, [], lambda n: None)
    table = agreement(student, head.of(teacher), recorded(teacher, [], dialogues=talks), lambda n: None)
    kept = detail.divergence(table).set_index("document")["tokens"]
    expected = []
    for (first,) in firsts:
        ours, theirs = (greedy(model, first, []) for model in (student, teacher))
        expected.append(next((i for i in range(LIMIT) if ours[i] != theirs[i]), LIMIT))
    assert kept.tolist() == expected
    if scale == 1.0:
        assert {*expected} == {LIMIT}
    else:
        assert min(expected) < LIMIT
