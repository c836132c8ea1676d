"""Agreement with a reference, beside what float64 gives of whole distributions."""

import pytest
import torch
from torch import Tensor

from pipeline.runtimes.compare import LEAD, Comparison, compared, of_logits, same_tokens
from pipeline.runtimes.opened import Predictions


def logits(seed: int, length: int = 200, vocabulary: int = 50) -> Tensor:
    return 2 * torch.randn(length, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    ours = logits(0)
    return ours, ours + 0.3 * logits(1)


ALL = torch.ones(201, dtype=torch.bool)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def test_whole_distributions_give_what_torchs_own_divergence_gives(pair: tuple[Tensor, Tensor]):
    ours, theirs = pair
    comparison = compared([ours], of_logits([theirs]), ALL[None])
    p, q = (values.double().log_softmax(dim=-1) for values in pair)
    two = p.topk(2).values
    clear = two[:, 0] - two[:, 1] >= LEAD
    same = p.argmax(dim=-1) == q.argmax(dim=-1)
    agreed = comparison.agreement
    assert comparison.positions == 200
    assert agreed.kl == pytest.approx(float(kl(p, q).mean()), rel=1e-5)
    assert agreed.top1 == pytest.approx(float(same.double().mean()))
    assert agreed.top1_clear == pytest.approx(float(same[clear].double().mean()))
    assert agreed.clear == pytest.approx(float(clear.double().mean()))
    assert not bool(clear.all())
    assert agreed.top1 < agreed.top1_clear < 1
    assert comparison.difference == pytest.approx(float((ours - theirs).abs().max()))
    assert comparison.largest == pytest.approx(float(ours.abs().max()))


@pytest.mark.parametrize("kept", [1, 5, 49, 50])
def test_the_likeliest_tokens_alone_give_a_lower_bound_that_grows_with_them(pair: tuple[Tensor, Tensor], kept: int):
    ours, theirs = pair
    told = theirs.log_softmax(dim=-1).topk(kept)
    comparison = compared([ours], [Predictions(torch.arange(200), told.values, told.indices)], ALL[None])
    whole = compared([ours], of_logits([theirs]), ALL[None]).agreement
    fewer = theirs.log_softmax(dim=-1).topk(max(1, kept // 2))
    coarser = compared([ours], [Predictions(torch.arange(200), fewer.values, fewer.indices)], ALL[None]).agreement
    assert comparison.parts
    assert 0 < coarser.kl <= comparison.agreement.kl * (1 + 1e-5) <= whole.kl * (1 + 1e-4)
    assert comparison.agreement[1:] == whole[1:]
    if kept >= 49:
        assert comparison.agreement.kl == pytest.approx(whole.kl, rel=1e-3)


def test_positions_whose_next_token_is_none_and_those_that_a_runtime_leaves_out_do_not_count(
    pair: tuple[Tensor, Tensor],
):
    ours, theirs = pair
    valid = torch.arange(200) < 41
    some = torch.arange(0, 199, 4)
    comparison = compared([ours], [Predictions(some, theirs[some])], valid[None])
    alone = compared([ours[:40:4]], of_logits([theirs[:40:4]]), torch.ones(1, 11, dtype=torch.bool))
    assert comparison.positions == alone.positions == 10
    assert comparison.agreement == pytest.approx(alone.agreement)


def test_what_is_no_number_stays_none():
    broken = logits(0, 4)
    broken[1, 3] = torch.nan
    comparison = compared([logits(0, 4)] * 2, of_logits([broken, logits(0, 4)]), torch.ones(2, 4, dtype=torch.bool))
    assert comparison.difference != comparison.difference
    assert Comparison().agreement == (0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([5, 6, 7, 8], [5, 6, 7, 8], 4),
        ([5, 6, 7, 8], [5, 6, 9, 8], 2),
        ([5, 2, 7, 8], [5], 4),
        ([5, 2, 7, 8], [5, 2], 4),
        ([5, 6, 7, 8], [5, 6], 2),
        ([5, 2, 7, 8], [5, 6, 7, 8], 1),
        ([2, 6, 7, 8], [1, 6, 7, 8], 4),
    ],
    ids=["same", "differs", "ends", "ends-told", "ends-early", "goes-on", "both-end"],
)
def test_continuations_are_the_same_up_to_the_first_token_that_differs_or_the_end_of_both(
    ours: list[int], theirs: list[int], same: int
):
    assert same_tokens(ours, theirs, frozenset({1, 2}), 4) == same
