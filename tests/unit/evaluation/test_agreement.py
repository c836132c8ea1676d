import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.evaluation import detail, items, references
from pipeline.evaluation.agreement import agreement, by_document
from pipeline.evaluation.references import References
from pipeline.models import head
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.unit.evaluation.recorded import cut, random_tokens, recorded
from tests.unit.models.test_plain_head import made


@pytest.fixture(scope="module")
def student(calibrated: QuantizedModel) -> PreTrainedModel:
    model = tiny.llama()
    calibrated.put_into(model)
    return model


@pytest.fixture(scope="module")
def held_out(tokens: Tensor, lengths: Tensor) -> References:
    return recorded(tiny.llama(), cut(tokens, lengths))


def compared(model: PreTrainedModel, known: References, teacher: PreTrainedModel | None = None) -> pd.DataFrame:
    return agreement(model, head.of(teacher or tiny.llama()), known, lambda n: None)


def plain(student: PreTrainedModel, teacher: PreTrainedModel, row: Tensor) -> tuple[Tensor, Tensor]:
    """KL and agreement of each next token, of a sequence alone, in float64 on the models' own logits."""
    ours, theirs = (m(input_ids=row[None]).logits[0, :-1].double() for m in (student, teacher))
    log_q, log_p = functional.log_softmax(ours, -1), functional.log_softmax(theirs, -1)
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    return kl, ours.argmax(-1) == theirs.argmax(-1)


def test_every_token_is_as_in_a_loop_over_sequences(student, held_out: References, tokens: Tensor, lengths: Tensor):
    calls: list[int] = []
    table = agreement(student, head.of(tiny.llama()), held_out, calls.append)
    assert dict(table.dtypes.astype(str)) == {**items.TOKENS, "text": str(table["text"].dtype)}
    for number, row in enumerate(cut(tokens, lengths)):
        kl, same = plain(student, tiny.llama(), row)
        mine = table[table["document"] == number]
        assert mine["position"].tolist() == [*range(1, len(row))]
        assert mine["kl"].tolist() == pytest.approx(kl.tolist(), rel=1e-4, abs=1e-6)
        assert mine["same"].tolist() == same.tolist()
    assert {*table["text"]} == {"held_out"}
    assert {*table["turn"]} == {0}
    assert sum(calls) == int(lengths.sum())


def test_documents_have_the_means_of_their_tokens(student, held_out: References, tokens: Tensor, lengths: Tensor):
    table = items.documents(by_document(compared(student, held_out), held_out))
    expected = [plain(student, tiny.llama(), row) for row in cut(tokens, lengths)]
    for measure, values in (
        ("kl", [kl.mean() for kl, _ in expected]),
        ("top1", [s.double().mean() for _, s in expected]),
    ):
        mine = table[table["measure"] == measure]
        assert mine["value"].tolist() == pytest.approx([float(value) for value in values], rel=1e-4)
        assert mine["tokens"].tolist() == [length - 1 for length in lengths.tolist()]
        assert mine["hash"].nunique() == len(lengths)


def test_a_model_agrees_with_itself_to_the_bit(held_out: References):
    table = compared(tiny.llama(), held_out)
    assert table["same"].all()
    assert (table["kl"] == 0).all()


def test_a_model_that_caps_its_logits_agrees_with_itself_and_has_them_capped(tokens: Tensor):
    model = made("Gemma2Config", 1.0, head_dim=16, final_logit_softcapping=3.0)
    wider = made("Gemma2Config", 1.0, head_dim=16, final_logit_softcapping=30.0)
    known = recorded(model, tokens)
    assert (compared(model, known, model)["kl"] == 0).all()
    table = compared(wider, known, model)
    kl, _ = plain(wider, model, tokens[0])
    assert table[table["document"] == 0]["kl"].tolist() == pytest.approx(kl.tolist(), rel=1e-3)
    assert table["kl"].mean() > 0.1


def test_divergence_is_from_the_teacher_and_not_the_other_way(
    student, held_out: References, tokens: Tensor, lengths: Tensor
):
    there = compared(student, held_out)
    back = compared(tiny.llama(), recorded(student, cut(tokens, lengths)), student)
    assert there["same"].tolist() == back["same"].tolist()
    assert there["kl"].mean() != pytest.approx(back["kl"].mean(), rel=1e-3)


def test_what_is_padded_in_a_batch_changes_nothing(student, tokens: Tensor, lengths: Tensor, monkeypatch):
    together = compared(student, recorded(tiny.llama(), cut(tokens, lengths)))
    monkeypatch.setattr(references, "FORWARD", 1)  # a document a forward
    alone = compared(student, recorded(tiny.llama(), cut(tokens, lengths)))
    assert together["kl"].tolist() == pytest.approx(alone["kl"].tolist(), rel=1e-4, abs=1e-6)


def test_of_a_dialogue_the_answers_alone_count(student):
    tokens, turns = random_tokens(12), torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 2])
    table = compared(student, recorded(tiny.llama(), [], dialogues=[(tokens, turns)]))
    assert table["position"].tolist() == [3, 4, 5, 8, 9, 10, 11]
    assert table["turn"].tolist() == [1, 1, 1, 2, 2, 2, 2]
    kl, _ = plain(student, tiny.llama(), tokens)
    assert table["kl"].tolist() == pytest.approx([float(kl[p - 1]) for p in table["position"]], rel=1e-4, abs=1e-6)


def test_logits_of_a_long_text_are_made_a_few_positions_at_a_time(student, monkeypatch):
    """By the rows of every product with a head, the student's and the teacher's."""
    long, rows = random_tokens(400), []
    known, teacher = recorded(tiny.llama(), [], long), tiny.llama()
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda module, args, logits: rows.append(logits.shape[:-1].numel()))
    table = agreement(student, head.of(teacher), known, lambda n: None)
    assert len(table) == 399
    assert max(rows) == head.CHUNK
    assert sum(rows) >= 2 * 399


def test_one_sequence_has_no_standard_error(student, tokens: Tensor):
    scores = detail.scores(compared(student, recorded(tiny.llama(), tokens[:1])))
    assert scores["kl"] > 0
    assert (scores["kl.stderr"], scores["top1.stderr"]) == (0.0, 0.0)
    assert not [name for name in scores if name.startswith("kl.at") and name.endswith("stderr")]


def test_references_read_back_as_they_were_written(student, tokens: Tensor, lengths: Tensor, tmp_path):
    talk = (random_tokens(8), torch.tensor([0, 0, 1, 1, 0, 2, 2, 2]))
    known = recorded(tiny.llama(), cut(tokens, lengths), random_tokens(60), [talk, talk])
    known.save(tmp_path / "references")
    loaded = References.load(tmp_path / "references")
    assert loaded.facts == known.facts
    assert [(d.text, d.number, d.start) for d in loaded.documents] == [
        (d.text, d.number, d.start) for d in known.documents
    ]
    for mine, theirs in zip(loaded.documents, known.documents, strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
        assert torch.equal(mine.turns, theirs.turns)
    assert torch.equal(loaded.states[3:9], known.states[3:9])
    pd.testing.assert_frame_equal(compared(student, loaded), compared(student, known))


def test_a_teacher_whose_states_are_not_finite_is_refused(tokens: Tensor):
    model = tiny.llama()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite on held_out text"):
        recorded(model, tokens)
