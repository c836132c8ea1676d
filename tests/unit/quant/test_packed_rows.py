"""Packed codes, scales and zero points: what was put in comes out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quant.grid import Grid
from pipeline.quant.packed_rows import PackedRows, pack, stored_bits, unpack
from tests.unit.quant.strategies import SEEDS, WEIGHT_BITS, random


@given(SEEDS, st.integers(1, 17), st.sampled_from([2, 4, 8]))
def test_unpacking_undoes_packing(seed: int, count: int, bits: int):
    codes = torch.randint(0, 2**bits, (2, 3, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits, count), codes)


def test_the_first_code_lies_lowest():
    codes = torch.tensor([1, 2, 15, 0, 7], dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [0x21, 0x0F, 0x07]
    assert pack(codes & 3, 2).tolist() == [0b00111001, 0b11]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_rows_come_back_as_the_grid_dequantizes_them(bits: int, symmetric: bool):
    grid, rows = Grid(bits, symmetric), random(0, 2, 5, 3, 7)
    rows[0, 1, 2], rows[1, 0] = 0, rows[1, 0].abs()
    packed = PackedRows(grid)
    for part in rows.split([1, 3, 1], dim=1):
        packed.append(part)
    step = grid.step_of(rows)
    assert torch.equal(packed.values(), grid.dequantize(grid.quantize(rows, step), step))
    groups, codes = 2 * 5 * 3, 2 * 5 * -(-3 * 7 * stored_bits(bits) // 8)
    assert sum(tensor.nbytes for tensor in packed.tensors()) == codes + groups * (2 if symmetric else 3)


def test_what_a_change_leaves_out_is_freed():
    packed, rows = PackedRows(Grid(4, False)), random(0, 2, 5, 3, 8)
    packed.append(rows)
    whole = packed.values()
    packed.change(lambda tensor: tensor[:, 3:])
    assert torch.equal(packed.values(), whole[:, 3:])
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in packed.tensors())
