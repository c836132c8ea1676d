"""What the teacher says, recorded once: the same as running it, to the last bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.distill.targets import Targets, mix, record
from pipeline.models import forward
from tests import tiny


def nothing(done: int) -> None:
    pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_recorded_is_what_the_teacher_gives(dtype: str, tokens: Tensor, lengths: Tensor, tmp_path: Path):
    teacher = tiny.llama()
    forward.cast_linears(teacher, dtype)
    record(teacher, tokens, lengths, 2, dtype, nothing).save(tmp_path / "targets", {})
    loaded = Targets.load(tmp_path / "targets")
    assert len(loaded) == 6
    for first in (0, 2, 4):
        ids, valid, hidden = loaded.rows([first, first + 1])
        with torch.no_grad(), forward.autocast(dtype):
            expected = forward.hidden_states(teacher, tokens[first : first + 2]).to(forward.torch_dtype(dtype))
        assert torch.equal(hidden, expected)
        assert torch.equal(ids, tokens[first : first + 2])
        assert valid.sum(dim=1).tolist() == lengths[first : first + 2].tolist()
    assert loaded.predicted(range(6)) == int(lengths.sum()) - 6


def test_rows_come_in_the_order_asked_for(tokens: Tensor, lengths: Tensor, tmp_path: Path):
    made = record(tiny.llama(), tokens, lengths, 6, "float32", nothing)
    made.save(tmp_path / "targets", {})
    for targets in (made, Targets.load(tmp_path / "targets")):
        ids, _, hidden = targets.rows([4, 0, 4])
        assert torch.equal(ids, tokens[[4, 0, 4]])
        assert torch.equal(hidden[0], hidden[2])
        assert torch.equal(hidden[1], made.hidden[0])


def test_progress_is_told_and_bad_states_are_refused(tokens: Tensor, lengths: Tensor):
    counts: list[int] = []
    record(tiny.llama(), tokens, lengths, 4, "float32", counts.append)
    assert counts == [80, 40]
    broken = tiny.llama()
    broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="hidden states are not finite on the training text"):
        record(broken, tokens, lengths, 4, "float32", nothing)


def sequences(count: int, first: int) -> tuple[Tensor, Tensor]:
    return torch.arange(first, first + count)[:, None].expand(-1, 3), torch.full((count,), 3)


@pytest.mark.parametrize(("share", "others"), [(0.5, 12), (0.25, 4), (0.4, 8)])
def test_a_mix_has_the_share_that_was_asked_for(share: float, others: int):
    tokens, lengths = mix(sequences(12, 0), sequences(30, 100), share, seed=3)
    outside = tokens[tokens[:, 0] >= 100, 0]
    assert len(tokens) == len(lengths) == 12 + others
    assert len(outside) == len(outside.unique()) == others
    assert outside.tolist() != [*range(100, 100 + others)]
    assert torch.equal(tokens, mix(sequences(12, 0), sequences(30, 100), share, seed=3)[0])
    assert not torch.equal(tokens, mix(sequences(12, 0), sequences(30, 100), share, seed=4)[0])


def test_a_share_of_one_is_the_others_alone():
    assert torch.equal(mix(sequences(12, 0), sequences(5, 100), 1.0, seed=0)[0], sequences(5, 100)[0])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_text_that_makes_no_sequence_is_refused(share: float):
    """As one token alone, which predicts nothing."""
    with pytest.raises(ValueError, match=r"targets\.text makes no sequence of two tokens"):
        mix(sequences(12, 0), sequences(0, 100), share, seed=0)


def test_too_little_text_is_answered_with_the_share_that_it_makes():
    with pytest.raises(ValueError, match=r"asks for 12 beside 12 .* the text makes 4; .* to 0.250 or less"):
        mix(sequences(12, 0), sequences(4, 100), 0.5, seed=0)
