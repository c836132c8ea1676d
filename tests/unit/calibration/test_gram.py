"""Sums of outer products by their upper blocks: against the whole product in float64."""

import pytest
import torch

from pipeline.calibration.gram import add_gram, mirror


@pytest.mark.parametrize("width", [1, 3, 4, 10, 64, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_over_batches_is_the_whole_product(width: int, dtype: torch.dtype):
    batches = torch.randn(3, 50, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    total = torch.zeros(width, width)
    for rows in batches:
        add_gram(total, rows)
    gram, exact = mirror(total), sum(rows.double().T @ rows.double() for rows in batches)
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gram.double(), exact, rtol=0, atol=(1e-4 if dtype == torch.float32 else 1.0))
