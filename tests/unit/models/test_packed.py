"""GPTQ's, auto-round's and bitsandbytes' packed integers become the weights they stand for, against plain loops."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.packed import unpacked
from tests.unit.models.coded import Coded, assert_becomes, refused, write

NF4 = torch.tensor([
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
])  # fmt: skip


def packed(codes: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] of the codes [rows, codes], as one long integer a row."""
    rows = []
    for row in codes.long().tolist():
        whole = sum(code << bits * i for i, code in enumerate(row))
        rows.append([whole >> at & 0xFFFFFFFF for at in range(0, bits * len(row), 32)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32).view(torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_come_out_of_words_as_they_went_in(bits: int):
    codes = torch.randint(2**bits, (5, 96))
    assert torch.equal(unpacked(packed(codes, bits), bits).long(), codes)


def gptq(weight: Tensor, bits: int, size: int, less: int, order: bool, symmetric: bool) -> Coded:
    """Groups of `size` inputs, in an order where `order` is; `less` is taken from each zero that is stored."""
    groups = torch.arange(weight.shape[1]) // size
    if order:
        groups = groups[torch.randperm(len(groups))]
    top = 2**bits - 1
    scale, zero = (
        torch.zeros(len(weight), int(groups.max()) + 1).half(),
        torch.zeros(len(weight), int(groups.max()) + 1),
    )
    codes, value = torch.zeros_like(weight), torch.zeros_like(weight)
    for g in range(scale.shape[1]):
        part = weight[:, groups == g]
        if symmetric:
            scale[:, g], zero[:, g] = (2 * part.abs().amax(dim=1) / top).half(), 2 ** (bits - 1)
        else:
            scale[:, g] = ((part.amax(dim=1) - part.amin(dim=1)) / top).half()
            zero[:, g] = (-part.amin(dim=1) / scale[:, g].float()).round().clamp(1, top)
        step, middle = scale[:, g, None].float(), zero[:, g, None]
        codes[:, groups == g] = ((part / step).round() + middle).clamp(0, top)
        value[:, groups == g] = (codes[:, groups == g] - middle) * step
    return {
        "qweight": packed(codes, bits).T,
        "qzeros": packed(zero.T - less, bits),
        "scales": scale.T,
        "g_idx": groups.int(),
    }, value


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "layout"), [(2, "gptq_v2"), (3, "gptq_v2"), (4, "gptq"), (4, None), (8, "gptq")])
def test_gptq(tmp_path: Path, bits: int, layout: str | None, symmetric: bool, order: bool):
    said = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": order, "sym": symmetric}
    less = 0 if layout == "gptq_v2" else 1
    expected = write(
        tmp_path / "model",
        said | ({"checkpoint_format": layout} if layout else {}),
        lambda w: gptq(w, bits, 16, less, order, symmetric),
        hidden=64,
    )
    assert_becomes(tmp_path / "model", expected, "gptq, dequantized")


def test_gptq_zeros_of_nothing_that_were_borrowed_for_come_back(tmp_path: Path):
    """GPTQModel takes one from each code of a whole word: a zero of 0 borrows from its neighbour."""

    def code(weight: Tensor) -> Coded:
        parts, _ = gptq(weight, 4, 16, 0, order=False, symmetric=False)
        zero = torch.randint(0, 3, (4 * weight.shape[1] // 64, len(weight)))
        words = packed(zero, 4).long() - 0x11111111
        parts["qzeros"] = (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)
        codes, groups = unpacked(parts["qweight"].T, 4).float(), parts["g_idx"].long()
        return parts, (codes - zero.T[:, groups]) * parts["scales"].float().T[:, groups]

    said = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}
    assert_becomes(tmp_path / "model", write(tmp_path / "model", said, code, hidden=64), "gptq, dequantized")


def test_auto_round_in_its_packing_of_gptq(tmp_path: Path):
    said = {"quant_method": "auto-round", "bits": 4, "group_size": 16, "packing_format": "auto_round:auto_gptq"}

    def code(weight: Tensor) -> Coded:
        parts, value = gptq(weight, 4, 16, 1, order=False, symmetric=True)
        return {name: part for name, part in parts.items() if name != "g_idx"}, value

    assert_becomes(tmp_path / "model", write(tmp_path / "model", said, code, hidden=64), "auto-round, dequantized")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "GPTQ in the layout 'marlin' cannot be dequantized"),
        ({"quant_method": "gptq", "bits": 3}, "has 3 bits in the layout 'gptq', in which libraries do not agree"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:exllamav2"}, "'auto_round:exllamav2' cannot be"),
    ],
)
def test_layouts_that_are_for_one_kernel_or_not_agreed_on_are_refused(tmp_path: Path, said: dict, expected: str):
    write(tmp_path / "model", said, lambda w: gptq(w, said.get("bits", 4), 16, 1, False, True), hidden=64)
    assert expected in refused(tmp_path / "model")


def test_gptq_with_an_order_that_names_other_groups_is_refused(tmp_path: Path):
    def code(weight: Tensor) -> Coded:
        parts, value = gptq(weight, 4, 16, 1, order=False, symmetric=True)
        return parts | {"g_idx": parts["g_idx"] + 1}, value

    write(tmp_path / "model", {"quant_method": "gptq", "bits": 4}, code, hidden=64)
    assert "g_idx names groups that are not among its " in refused(tmp_path / "model")


def in_four_bits(weight: Tensor, nested: bool) -> Coded:
    """bitsandbytes' NF4 in blocks of 64, the absmax of which are codes of a table of their own where `nested`."""
    blocks = weight.reshape(-1, 64)
    absmax = blocks.abs().amax(dim=1)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [*weight.shape]}
    parts = {}
    if nested:
        table, offset = torch.linspace(-1, 1, 256), float(absmax.mean())
        outer = torch.tensor([(part - offset).abs().max() for part in absmax.split(256)])
        near = [
            ((part - offset) / most - table[:, None]).abs().argmin(dim=0)
            for part, most in zip(absmax.split(256), outer, strict=True)
        ]
        absmax = torch.cat([table[index] * most + offset for index, most in zip(near, outer, strict=True)])
        parts = {"weight.nested_absmax": outer, "weight.nested_quant_map": table}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    codes = (blocks / absmax[:, None] - NF4[:, None, None]).abs().argmin(dim=0)
    value = (NF4[codes] * absmax[:, None]).reshape(weight.shape)
    octets = codes.flatten().reshape(-1, 2)
    return parts | {
        "weight": (octets[:, :1] * 16 + octets[:, 1:]).to(torch.uint8),
        "weight.absmax": torch.cat(near).to(torch.uint8) if nested else absmax,
        "weight.quant_map": NF4.clone(),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }, value


@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes_in_4_bits(tmp_path: Path, nested: bool):
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    expected = write(tmp_path / "model", said, lambda w: in_four_bits(w, nested), hidden=64)
    assert_becomes(tmp_path / "model", expected, "bitsandbytes, dequantized")


def test_bitsandbytes_in_8_bits(tmp_path: Path):
    def code(weight: Tensor) -> Coded:
        absmax = weight.abs().amax(dim=1)
        codes = (weight / absmax[:, None] * 127).round().to(torch.int8)
        parts = {"weight": codes, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return parts, codes.float() * (absmax / 127)[:, None]

    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    expected = write(tmp_path / "model", said, code, hidden=64)
    assert_becomes(tmp_path / "model", expected, "bitsandbytes, dequantized")
