"""The chunked loss against torch's own cross_entropy and kl_div on whole float64 logits, in value and in gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.distill.losses import LossWeights, distillation_loss

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
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, CE and T^2 KL in float64, by autograd and on whole logits."""
    next_is_valid = valid[:, 1:].reshape(-1)
    ours = (student.double() @ heads[0].double().T)[:, :-1].reshape(-1, VOCABULARY)[next_is_valid]
    theirs = (teacher.double() @ heads[1].double().T)[:, :-1].reshape(-1, VOCABULARY)[next_is_valid]
    ce = functional.cross_entropy(ours, tokens[:, 1:].reshape(-1)[next_is_valid])
    log_q, log_p = (functional.log_softmax(z / w.temperature, dim=-1) for z in (ours, theirs))
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * w.temperature**2
    return w.ce * ce + w.kl * kl, ce, kl


def both(dtype: torch.dtype, mask: str, weights: LossWeights, spread: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, CE, KL and the gradient by the student's hidden states: ours and the reference's."""
    student, teacher, heads, tokens = problem(dtype, spread)
    found = []
    for function in (distillation_loss, reference):
        leaf = student.clone().requires_grad_()
        loss, ce, kl = function(leaf, teacher, heads, tokens, MASKS[mask], weights)
        (3 * loss).backward()
        found.append([loss.detach().double(), ce.double(), kl.double(), leaf.grad.double()])
    return found[0], found[1]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.5])
@pytest.mark.parametrize(("ce", "kl"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.2, 3.0)])
def test_in_float64_value_and_gradient_are_autograds(ce: float, kl: float, temperature: float, chunk: int, mask: str):
    ours, theirs = both(torch.float64, mask, LossWeights(ce, kl, temperature, chunk))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_in_float32_value_and_gradient_stay_near_autograds(temperature: float):
    ours, theirs = both(torch.float32, "ragged", LossWeights(0.5, 0.5, temperature, 4))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-6)


def test_in_bfloat16_only_the_products_are_rounded():
    """Logits of bfloat16 have 8 bits, so each may be off by 2^-8 of itself; the sums over them are float32."""
    ours, theirs = both(torch.bfloat16, "full", LossWeights(0.5, 0.5, 1.0, 4))
    for mine, expected in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-2, atol=0)
    error = (ours[3] - theirs[3]).norm() / theirs[3].norm()
    assert error < 1e-2


def test_logits_in_the_thousands_neither_overflow_nor_lose_the_value():
    ours, theirs = both(torch.float64, "full", LossWeights(0.5, 0.5, 1.0, 4), spread=40.0)
    assert theirs[0] > 1000
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_a_student_that_says_what_the_teacher_says_has_no_divergence_and_no_gradient():
    _, teacher, heads, tokens = problem(torch.float32)
    leaf = teacher.clone().requires_grad_()
    loss, _, kl = distillation_loss(leaf, teacher, (heads[1], heads[1]), tokens, MASKS["ragged"], LossWeights(0, 1))
    loss.backward()
    assert kl == 0
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_only_the_loss_carries_a_gradient():
    student, teacher, heads, tokens = problem()
    loss, ce, kl = distillation_loss(
        student.requires_grad_(), teacher, heads, tokens, MASKS["full"], LossWeights(0.5, 0.5)
    )
    assert loss.requires_grad
    assert not ce.requires_grad
    assert not kl.requires_grad


def test_positions_whose_next_token_is_not_valid_do_not_count():
    student, teacher, heads, tokens = problem()
    mask = MASKS["ragged"]
    kept = distillation_loss(student, teacher, heads, tokens, mask, LossWeights(0.5, 0.5))
    ignored = ~torch.cat([mask[:, 1:], torch.zeros(BATCH, 1, dtype=torch.bool)], dim=1)
    student[ignored], teacher[ignored] = 99.0, -99.0
    changed = tokens.where(mask, (tokens + 1) % VOCABULARY)
    again = distillation_loss(student, teacher, heads, changed, mask, LossWeights(0.5, 0.5))
    assert torch.equal(torch.stack([*map(torch.Tensor.double, kept)]), torch.stack([*map(torch.Tensor.double, again)]))
