import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation import agreement as module
from pipeline.evaluation import items
from pipeline.evaluation.agreement import agreement
from pipeline.quant.model import QuantizedModel
from tests import tiny


@pytest.fixture(scope="module")
def student(calibrated: QuantizedModel):
    model = tiny.llama()
    calibrated.put_into(model)
    return model


def test_divergence_and_agreement_are_those_of_a_loop_over_sequences(
    student, tokens: Tensor, lengths: Tensor, valid: Tensor
):
    """Each sequence alone and unpadded, in float64 on its own logits."""
    divergences, agreed = [], []
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        ours, theirs = (m(input_ids=row[None, :length]).logits[0, :-1].double() for m in (student, tiny.llama()))
        log_q, log_p = functional.log_softmax(ours, -1), functional.log_softmax(theirs, -1)
        divergences.append(functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
        agreed.append((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    calls: list[None] = []
    scores, rows = agreement(student, tiny.llama(), tokens, valid, lambda: calls.append(None))
    kl, top1 = torch.stack(divergences), torch.stack(agreed)
    assert scores["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert scores["kl.stderr"] == pytest.approx(kl.std().item() / math.sqrt(6), rel=1e-4)
    assert scores["top1"] == pytest.approx(top1.mean().item())
    assert scores["top1.stderr"] == pytest.approx(top1.std().item() / math.sqrt(6))
    assert len(calls) == math.ceil(6 / module.BATCH)
    table = items.documents(rows)
    for measure, expected in (("kl", kl), ("top1", top1)):
        mine = table[table["measure"] == measure]
        assert mine["value"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert mine["tokens"].tolist() == [length - 1 for length in lengths.tolist()]


def test_a_model_agrees_with_itself(tokens: Tensor, valid: Tensor):
    scores, _ = agreement(tiny.llama(), tiny.llama(), tokens, valid, lambda: None)
    assert scores == {"kl": 0.0, "kl.stderr": 0.0, "top1": 1.0, "top1.stderr": 0.0}


def test_divergence_is_from_the_teacher_and_not_the_other_way(student, tokens: Tensor, valid: Tensor):
    there, back = (
        agreement(a, b, tokens, valid, lambda: None)[0] for a, b in ((student, tiny.llama()), (tiny.llama(), student))
    )
    assert there["top1"] == back["top1"]
    assert there["kl"] != pytest.approx(back["kl"], rel=1e-3)


def test_what_lies_behind_the_valid_tokens_does_not_count(student, tokens: Tensor, valid: Tensor):
    changed = tokens.where(valid, (tokens + 9) % 259)
    assert agreement(student, tiny.llama(), changed, valid, lambda: None) == agreement(
        student, tiny.llama(), tokens, valid, lambda: None
    )


def test_one_sequence_has_no_standard_error(student, tokens: Tensor, valid: Tensor):
    scores, _ = agreement(student, tiny.llama(), tokens[:1], valid[:1], lambda: None)
    assert scores["kl"] > 0
    assert (scores["kl.stderr"], scores["top1.stderr"]) == (0.0, 0.0)
