"""Output channels that make up for each other: against the recursion written out row by row in float64."""

import pytest
import torch
from torch import Tensor

from pipeline.knobs.scheme import Weights
from pipeline.rounding.across import MAX_DAMPING, round_across
from pipeline.rounding.methods import Rounded, gptq, rtn

FOUR = Weights(4)


def gram(width: int, seed: int, tokens: int = 300) -> Tensor:
    """Of correlated vectors of unequal strength: float32 [width, width]."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    rows = (torch.randn(tokens, width, generator=generator) * torch.logspace(0, -1.5, width)) @ turn
    return rows.T @ rows


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [24, 32], a Hessian of its inputs, and a matrix of its outputs."""
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(seed))
    return weight, gram(32, seed + 1), gram(24, seed + 2)


def cost(error: Tensor, hessian: Tensor, outputs: Tensor) -> float:
    """tr(O E H E^T) in float64."""
    error = error.double()
    return float((outputs.double() @ error @ hessian.double() * error).sum())


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_each_row_is_rounded_moved_by_the_errors_of_those_after_it(damping: float):
    weight, _, outputs = problem()
    moved_rows: list[Tensor] = []

    def rounded(part: Tensor) -> Rounded:
        moved_rows.insert(0, part)
        return rtn(part, None, FOUR)

    parts = round_across(weight, outputs, damping, rounded, rows=1)
    exact = outputs.double() + damping * outputs.double().diagonal().mean() * torch.eye(24)
    errors = torch.zeros(24, 32, dtype=torch.float64)
    for row in reversed(range(24)):
        # least squares, by the rows before it, of what the errors of the rows after it cost
        own = exact[: row + 1, : row + 1]
        others = exact[: row + 1, row + 1 :]
        best = -torch.linalg.solve(own, others @ errors[row + 1 :])[row]
        expected = weight[row].double() - best
        torch.testing.assert_close(moved_rows[row][0].double(), expected, rtol=1e-4, atol=1e-4)
        errors[row] = weight[row].double() - parts[row].weight[0].double()


@pytest.mark.parametrize("rows", [1, 5, 8, 24, 96])
def test_blocks_come_back_in_order_and_cover_all_rows(rows: int):
    weight, _, outputs = problem(1)
    sizes = [len(part.codes) for part in round_across(weight, outputs, 0.1, lambda w: rtn(w, None, FOUR), rows)]
    assert sum(sizes) == 24
    assert sizes[:-1] == [rows] * (len(sizes) - 1)


def test_outputs_that_do_not_count_together_change_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(round_across, "__defaults__", (4,))
    weight, hessian, together = problem(2)
    apart = torch.diag(torch.linspace(1, 9, 24))
    alone, blocks = gptq(weight, hessian, FOUR, descent=2), gptq(weight, hessian, FOUR, descent=2, outputs=apart)
    assert not torch.equal(alone.codes, gptq(weight, hessian, FOUR, descent=2, outputs=together).codes)
    # a product of four rows may be summed in another order than one of all, so a tie may fall to the other side
    assert (alone.codes != blocks.codes).float().mean() <= 0.01
    torch.testing.assert_close(alone.step.scale, blocks.step.scale, rtol=2e-3, atol=0)  # float16's neighbours
    costs = [cost(rounded.weight - weight, hessian, apart) for rounded in (alone, blocks)]
    assert costs[1] == pytest.approx(costs[0], rel=1e-2)


@pytest.mark.parametrize("scheme", [Weights(4), Weights(3, group=8), Weights(4, symmetric=False)], ids=str)
@pytest.mark.parametrize("descent", [0, 2])
def test_they_cost_less_together_than_each_for_itself(monkeypatch: pytest.MonkeyPatch, scheme: Weights, descent: int):
    monkeypatch.setattr(round_across, "__defaults__", (4,))
    for seed in range(4):
        weight, hessian, outputs = problem(10 * seed)
        alone = gptq(weight, hessian, scheme, descent=descent)
        together = gptq(weight, hessian, scheme, descent=descent, outputs=outputs, outputs_damping=0.01)
        assert cost(together.weight - weight, hessian, outputs) < 0.9 * cost(alone.weight - weight, hessian, outputs)
        assert together.codes.shape == alone.codes.shape
        assert together.step.scale.shape == alone.step.scale.shape


def test_a_matrix_of_too_few_tokens_is_damped_until_it_has_a_factor():
    weight, hessian, _ = problem(3)
    few = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    outputs = few.T @ few - 0.05 * torch.eye(24)  # as rounded products may be: not quite positive
    assert torch.isfinite(gptq(weight, hessian, FOUR, outputs=outputs, outputs_damping=0.01).weight).all()


def test_a_matrix_that_is_not_finite_is_refused():
    weight, hessian, outputs = problem(4)
    outputs[0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"no Cholesky factor with damping {MAX_DAMPING}; are they finite"):
        gptq(weight, hessian, FOUR, outputs=outputs)
