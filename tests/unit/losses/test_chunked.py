"""The chunked loss against torch's own cross_entropy and kl_div on whole float64 logits, in value and in gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.losses.chunked import DIVERGENCES, Loss, LossWeights, distillation_loss

BATCH, LENGTH, HIDDEN, VOCABULARY = 3, 9, 8, 37
MASKS = {
    "full": torch.ones(BATCH, LENGTH, dtype=torch.bool),
    "ragged": torch.arange(LENGTH)[None] < torch.tensor([9, 4, 2])[:, None],
    "one row": torch.arange(LENGTH)[None] < torch.tensor([0, 6, 1])[:, None],
    "holes": torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(5)) < 0.5,
}


def problem(
    dtype: torch.dtype = torch.float64, spread: float = 1.0
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Student's and teacher's hidden states, their heads, tokens."""
    generator = torch.Generator().manual_seed(0)
    shapes = (BATCH, LENGTH, HIDDEN), (BATCH, LENGTH, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY, HIDDEN)
    student, teacher, *heads = (torch.randn(s, generator=generator, dtype=torch.float64) * spread for s in shapes)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    return student.to(dtype), teacher.to(dtype), (heads[0].to(dtype), heads[1].to(dtype)), tokens


def reference(
    student: Tensor, teacher: Tensor, heads: tuple[Tensor, Tensor], tokens: Tensor, valid: Tensor, w: LossWeights
) -> Loss:
    """The loss and its terms in float64, by autograd and on whole logits."""
    next_is_valid = valid[:, 1:].reshape(-1)
    ours = (student.double() @ heads[0].double().T)[:, :-1].reshape(-1, VOCABULARY)[next_is_valid]
    theirs = (teacher.double() @ heads[1].double().T)[:, :-1].reshape(-1, VOCABULARY)[next_is_valid]
    ce = functional.cross_entropy(ours, tokens[:, 1:].reshape(-1)[next_is_valid])
    log_q, log_p = (functional.log_softmax(z / w.temperature, dim=-1) for z in (ours, theirs))
    forward, reverse = (
        functional.kl_div(a, b, log_target=True, reduction="batchmean") * w.temperature**2
        for a, b in ((log_q, log_p), (log_p, log_q))
    )
    kl = {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}[w.divergence]
    h_s, h_t = (h.double()[:, :-1][valid[:, 1:]] for h in (student, teacher))
    h_s = w.back(h_s) if w.back else h_s
    hidden = ((h_s - h_t).square().sum(-1) / h_t.square().sum(-1)).mean()
    return Loss(w.ce * ce + w.kl * kl + w.hidden * hidden, ce, kl, hidden if w.hidden else torch.zeros(()))


def both(dtype: torch.dtype, mask: str, weights: LossWeights, spread: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and terms, and the gradients by the student's hidden states and head: ours and the reference's."""
    student, teacher, heads, tokens = problem(dtype, spread)
    evaluations = []
    for function in (distillation_loss, reference):
        leaf, head = student.clone().requires_grad_(), heads[0].clone().requires_grad_()
        loss = function(leaf, teacher, (head, heads[1]), tokens, MASKS[mask], weights)
        (3 * loss.total).backward()
        by_head = torch.zeros_like(head) if head.grad is None else head.grad  # of the hidden term alone there is none
        evaluations.append([*(term.detach().double() for term in loss), leaf.grad.double(), by_head.double()])
    return evaluations[0], evaluations[1]


TERM = st.sampled_from([0.0, 1.0]) | st.floats(0.1, 3)  # a weight of 0 or 1 takes a way of its own
LOSSES = st.builds(
    LossWeights,
    ce=TERM,
    kl=TERM,
    temperature=st.just(1.0) | st.floats(0.4, 3),
    chunk=st.integers(1, 30),
    divergence=st.sampled_from([*DIVERGENCES]),
    hidden=TERM,
)


@settings(max_examples=100)
@given(LOSSES, st.sampled_from([*MASKS]))
def test_in_float64_value_and_gradient_are_autograds(weights: LossWeights, mask: str):
    ours, theirs = both(torch.float64, mask, weights)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_the_parts_of_a_step_add_up_to_it():
    """In value and gradient, where each part knows how many tokens the step counts; one part counts none."""
    student, teacher, heads, tokens = problem()
    mask, weights = MASKS["ragged"].clone(), LossWeights(0.5, 0.5, 2.0, 4, "symmetric", 0.3)
    mask[2] = False
    counted, whole = int(mask[:, 1:].sum()), student.clone().requires_grad_()
    expected = distillation_loss(whole, teacher, heads, tokens, mask, weights)
    expected.total.backward()
    split = student.clone().requires_grad_()
    parts = []
    for row in range(BATCH):
        one = slice(row, row + 1)
        parts.append(distillation_loss(split[one], teacher[one], heads, tokens[one], mask[one], weights, counted))
        parts[-1].total.backward()
    for term, values in zip(expected, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(values).sum(), term)
    torch.testing.assert_close(split.grad, whole.grad)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_in_float32_value_and_gradient_stay_near_autograds(temperature: float):
    ours, theirs = both(torch.float32, "ragged", LossWeights(0.5, 0.5, temperature, 4))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-6)


def test_in_bfloat16_only_the_products_are_rounded():
    """Logits of bfloat16 have 8 bits, so each may be off by 2^-8 of itself; the sums over them are float32."""
    ours, theirs = both(torch.bfloat16, "full", LossWeights(0.5, 0.5, 1.0, 4))
    for mine, expected in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-2, atol=0)
    for mine, expected in zip(ours[4:], theirs[4:], strict=True):
        assert (mine - expected).norm() / expected.norm() < 1e-2


def test_logits_in_the_thousands_neither_overflow_nor_lose_the_value():
    ours, theirs = both(torch.float64, "full", LossWeights(0.5, 0.5, 1.0, 4), spread=40.0)
    assert theirs[0] > 1000
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_the_hidden_term_can_take_the_states_back_first(mask: str):
    turn, _ = torch.linalg.qr(
        torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )
    ours, theirs = both(torch.float64, mask, LossWeights(0.0, 0.5, 1.0, 4, hidden=0.7, back=lambda h: 2 * h @ turn))
    plain, _ = both(torch.float64, mask, LossWeights(0.0, 0.5, 1.0, 4, hidden=0.7))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)
    assert ours[3] != plain[3]
    assert ours[2] == plain[2]


def test_a_student_that_says_what_the_teacher_says_has_no_divergence_and_no_gradient():
    _, teacher, heads, tokens = problem(torch.float32)
    leaf = teacher.clone().requires_grad_()
    loss, _, kl, hidden = distillation_loss(
        leaf, teacher, (heads[1], heads[1]), tokens, MASKS["ragged"], LossWeights(0, 1, hidden=1)
    )
    loss.backward()
    assert kl == hidden == 0
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_only_the_loss_carries_a_gradient():
    student, teacher, heads, tokens = problem()
    loss, ce, kl, hidden = distillation_loss(
        student.requires_grad_(), teacher, heads, tokens, MASKS["full"], LossWeights(0.5, 0.5)
    )
    assert loss.requires_grad
    assert not ce.requires_grad
    assert not kl.requires_grad
    assert not hidden.requires_grad


def test_positions_whose_next_token_is_not_valid_do_not_count():
    student, teacher, heads, tokens = problem()
    mask = MASKS["ragged"]
    kept = distillation_loss(student, teacher, heads, tokens, mask, LossWeights(0.5, 0.5))
    ignored = ~torch.cat([mask[:, 1:], torch.zeros(BATCH, 1, dtype=torch.bool)], dim=1)
    student[ignored], teacher[ignored] = 99.0, -99.0
    changed = tokens.where(mask, (tokens + 1) % VOCABULARY)
    again = distillation_loss(student, teacher, heads, changed, mask, LossWeights(0.5, 0.5))
    assert torch.equal(torch.stack([*map(torch.Tensor.double, kept)]), torch.stack([*map(torch.Tensor.double, again)]))
