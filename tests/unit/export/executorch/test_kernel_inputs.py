"""What XNNPACK's kernel makes of its input, by its documented rule, is what the scheme says."""

import itertools

import pytest
import torch
from torch import Tensor

from pipeline.export.executorch import kernel_inputs
from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Grid, Step

SCHEMES = [
    Activations(bits, symmetric, dynamic)
    for bits, symmetric, dynamic in itertools.product((4, 5, 8, 16), (True, False), (True, False))
    if bits < 16 or not dynamic
]


@pytest.fixture
def x() -> Tensor:
    """float32 [1, 9, 24]: rows of several sizes, one above zero, one of zeros."""
    x = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 9)[:, None]
    x[0, 4], x[0, 5] = x[0, 4].abs(), 0.0
    return x


def by_kernel(rows: Tensor) -> Tensor:
    """Rows as the kernel sees them, 256 numbers from the least to the greatest, added up."""
    least, greatest = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    scale = ((greatest - least) / 255).double()
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-128 - least / scale).round()
    codes = ((rows / scale).round() + zero).clamp(-128, 127)
    return ((codes - zero) * scale).sum(dim=0, keepdim=True)


def static(x: Tensor, scheme: Activations, share: float = 0.5) -> Quantizer:
    """A static grid that holds a share of the values' range, or a dynamic one."""
    if scheme.dynamic:
        return Quantizer(scheme)
    step = Grid(scheme.bits, scheme.symmetric).step(x.min() * share, x.max() * share, torch.float32)
    return Quantizer(scheme, step)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_kernel_has_the_schemes_grid(x: Tensor, scheme: Activations):
    quantizer = static(x, scheme)
    inputs = kernel_inputs.inputs_of(quantizer)
    rows = kernel_inputs.parts(x, inputs)
    ours, theirs = quantizer(x).double(), by_kernel(rows)[..., : x.shape[-1]]
    assert rows.shape[0] == (2 if scheme.bits == 16 else 1)
    assert rows.shape[-1] - x.shape[-1] == (0 if inputs and inputs.is_kernels_own else kernel_inputs.ENDS)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6 * float(x.abs().max()))


def test_a_second_grid_holds_what_lies_beyond_the_first(x: Tensor):
    scheme = Activations(16)
    first = static(x, scheme, 0.1)
    outer = Step(x.abs().max() / 2**15, torch.zeros(()))
    quantizer = Quantizer(scheme, first.step, outer)
    rows = kernel_inputs.parts(x, kernel_inputs.inputs_of(quantizer))
    assert rows.shape[0] == 4
    torch.testing.assert_close(by_kernel(rows)[..., :24], quantizer(x).double(), rtol=1e-5, atol=1e-5)


def test_an_input_in_float_has_15_bits(x: Tensor):
    theirs = by_kernel(kernel_inputs.parts(x, None))[..., :24]
    largest = x.abs().amax(dim=-1, keepdim=True)
    assert bool(((theirs - x).abs() <= largest * 2.0**-15).all())
    assert float((theirs - x).abs().max()) > 0
