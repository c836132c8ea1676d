"""Blocks of codes and scales, read by gguf's own code."""

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.export.gguf import blocks as gguf_blocks
from pipeline.knobs.scheme import Weights
from pipeline.rounding.methods import rtn


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), group=st.sampled_from([0, 32, 64, 192]), rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_blocks_stand_for_codes_times_scales(bits: int, group: int, rows: int, seed: int):
    """Whatever the codes, the least one included, and whatever the scales' signs; to the last bit."""
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (rows, 192), generator=generator, dtype=torch.int8)
    scale = torch.randn(rows, 192 // (group or 192), generator=generator).half().float()
    blocks, kind = gguf_blocks.write(codes, scale, bits)
    expected = codes.float() * scale.repeat_interleave(group or 192, dim=1)
    assert torch.equal(torch.from_numpy(dequantize(blocks, kind)), expected)


@pytest.mark.parametrize(("bits", "kind"), [(2, "Q4_0"), (4, "Q4_0"), (5, "Q5_0"), (6, "Q8_0"), (8, "Q8_0")])
def test_the_smallest_kind_that_holds_the_codes_is_taken(bits: int, kind: str):
    assert gguf_blocks.kind_of(bits).type.name == kind


def test_they_are_the_bytes_that_ggufs_own_quantizer_writes():
    """Of weights that lie on a Q8_0 grid, which it finds again."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    scale = weight.unflatten(1, (2, 32)).abs().amax(dim=2) / 127
    scale = scale.half().float()
    codes = (weight / scale.repeat_interleave(32, dim=1)).round().clamp(-127, 127)
    codes[:, ::32] = 127  # of each block, so that the scale is found again
    exact = codes * scale.repeat_interleave(32, dim=1)
    blocks, kind = gguf_blocks.write(codes.to(torch.int8), scale, 8)
    assert kind == GGMLQuantizationType.Q8_0
    assert (blocks == quantize(exact.numpy(), kind)).all()


def test_rows_of_zeros_are_zeros():
    rounded = rtn(torch.zeros(3, 32), None, Weights(4))
    blocks, kind = gguf_blocks.write(rounded.codes, rounded.step.scale, 4)
    assert not dequantize(blocks, kind).any()


def test_a_scale_that_float16_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="float16, which does not hold this weight's scales"):
        gguf_blocks.write(torch.zeros(1, 32, dtype=torch.int8), torch.tensor([[1e6]]), 4)


@pytest.mark.parametrize(
    ("scheme", "width", "said"),
    [
        (Weights(4), 64, ""),
        (Weights(3, group=64), 128, ""),
        (Weights(4, symmetric=False), 64, "blocks have no zero points"),
        (Weights(4), 48, "48 inputs are no multiple of 32"),
        (Weights(4, group=16), 64, "a group of 16 is no multiple of 32"),
    ],
)
def test_what_blocks_cannot_hold_is_said(scheme: Weights, width: int, said: str):
    problem = gguf_blocks.problem(scheme, width)
    assert problem.startswith(said) if said else problem == ""
