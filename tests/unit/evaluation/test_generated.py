import math
from dataclasses import dataclass

import pytest

from pipeline.corpus import decoding
from pipeline.evaluation import generated, items, prompts, writing
from pipeline.evaluation.scores import of_answers
from pipeline.evaluation.writing import Script
from pipeline.knobs.scheme import KVCache
from pipeline.quant.kv_cache import quantize_cache
from tests import tiny

OURS, OWN, NONE = decoding.WAYS


@dataclass
class Instruction:
    prompt: str
    word: str
    kind: str = "a word"

    def followed(self, answer: str) -> bool:
        return self.word in answer


def script(text: str, ended: bool) -> Script:
    tokens = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"] + [2] * ended
    return Script([[1]], [1, *tokens], [0] + [1] * len(tokens), [ended])


def test_what_is_followed_repeated_and_ended_is_counted():
    asked = [Instruction("Say a.", "a"), Instruction("Say b.", "b"), Instruction("Say c.", "c")]
    written = [script("a cat", True), script("ababababab", False), script(" none", True)]
    rows, answers = generated.judged(asked, written, tiny.tokenizer())
    table = items.answers(rows)
    scores = of_answers(table) | generated.of_written(items.written(answers))
    assert scores["accuracy.instructions"] == pytest.approx(2 / 3)
    assert scores["accuracy.instructions.stderr"] == pytest.approx(math.sqrt((2 / 3 * 1 / 3) / 2))
    assert scores["generated.ended"] == pytest.approx(2 / 3)
    assert scores["generated.repetition"] == pytest.approx((1 - 2 / 7) / 3)  # two 4-grams of seven
    assert items.written(answers)["tokens"].tolist() == [5, 10, 5]
    assert items.written(answers)["text"].tolist() == ["a cat", "ababababab", " none"]
    assert table["correct"].tolist() == [True, True, False]
    assert {*table["task"]} == {"instructions"}
    assert table["hash"].nunique() == 3


@pytest.mark.parametrize(("tokens", "share"), [([], 0.0), ([1, 2, 3], 0.0), ([1, 2, 3, 4], 0.0), ([7] * 8, 0.8)])
def test_a_repetition_is_a_4_gram_that_was_there_before(tokens: list[int], share: float):
    assert generated.repetition(tokens) == pytest.approx(share)


def test_a_variant_writes_as_its_teacher_but_for_an_attention_that_would_be_left_out():
    model = tiny.llama()
    for way in decoding.WAYS:
        assert generated.way_of(model, way) == way
    quantize_cache(model, KVCache(bits=4))
    assert [generated.way_of(model, way) for way in decoding.WAYS] == [OWN, OWN, NONE]
    said = prompts.instructions(0, 2, tiny.tokenizer()).said
    chosen, anew = (writing.write(model, way, said, 8, [2], lambda n: None) for way in (OWN, NONE))
    assert chosen[0].tokens == anew[0].tokens
