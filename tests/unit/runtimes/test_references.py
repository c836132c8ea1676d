"""What exports are held against."""

from pathlib import Path

import pytest
import torch

from pipeline.runtimes.limits import Limits
from pipeline.runtimes.references import References, Text, references, text
from tests import tiny
from tests.unit.export.quantized import quantized

TOKENS = torch.tensor([[1, 2, 3, 4] * 8, [1, 2, 3, 4] * 8, [9, 2, 3, 4] * 8, [7] * 32])


def test_prompts_are_beginnings_that_are_not_alike_and_whole():
    asked = text(TOKENS, torch.tensor([32, 32, 32, 15]), 3, 4, 16, 8)
    assert torch.equal(asked.prompts, TOKENS[[0, 2], :16])
    assert torch.equal(asked.tokens, TOKENS[:3])
    assert bool(asked.valid.all())
    assert asked.context == 32
    assert text(TOKENS, torch.tensor([32, 20, 32, 32]), 2, 2, 16, 40).valid.sum(dim=1).tolist() == [32, 20]
    assert text(TOKENS, torch.tensor([32] * 4), 1, 1, 16, 40).context == 16 + 40


def test_text_of_which_no_sequence_is_long_enough_has_a_prompt_all_the_same():
    assert text(TOKENS, torch.tensor([3] * 4), 1, 4, 16, 2).prompts.shape == (1, 16)


def test_the_student_is_looked_at_with_its_inputs_on_their_grids_and_in_float(against: References, asked: Text):
    model = tiny.llama()
    teacher = model(input_ids=asked.tokens).logits
    undo = quantized("blocks").put_into(model)
    student = model(input_ids=asked.tokens).logits
    undo()
    in_float = model(input_ids=asked.tokens).logits
    for ours, expected in ((against.teacher, teacher), (against.student, student), (against.in_float, in_float)):
        assert torch.allclose(torch.stack(ours), expected, atol=1e-5)
    assert not torch.allclose(student, in_float, atol=1e-6)
    assert not torch.allclose(teacher, in_float, atol=1e-2)
    assert against.vocabulary == 259
    assert against.special == {0, 1, 2}


def test_without_grids_for_inputs_there_is_one_student(whole_teacher: Path, asked: Text):
    plain = references(quantized("head"), whole_teacher, asked)
    assert plain.student is plain.in_float


def test_a_text_beyond_the_models_context_is_refused(whole_teacher: Path):
    long = text(TOKENS, torch.tensor([32] * 4), 1, 1, 16, 500)
    with pytest.raises(ValueError, match=r"prove.tokens: a prompt of 16 tokens and 500 more are over the 512 of"):
        references(quantized("blocks"), whole_teacher, long)


def test_a_part_is_the_beginning_of_each_and_stands_for_itself(against: References):
    part = against.within(Limits(sequences=1, positions=10, prompts=2, tokens=3))
    assert torch.equal(part.text.tokens, against.text.tokens[:1, :10])
    assert torch.equal(part.text.valid, against.text.valid[:1, :10])
    assert torch.equal(part.text.prompts, against.text.prompts[:2])
    assert (part.text.count, part.text.context) == (3, 19)
    assert part.continuations == [ids[:3] for ids in against.continuations[:2]]
    for name in ("teacher", "student", "in_float"):
        (logits,) = getattr(part, name)
        assert torch.equal(logits, getattr(against, name)[0][:10])
    assert against.within(None) is against
