"""Checkpoints whose weights are stored in fewer bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.models import saved, sources
from tests import tiny

Coded = tuple[dict[str, Tensor], Tensor]  # tensors of a linear by the ends of their names, the weight they stand for


def write(
    folder: Path,
    said: dict[str, Any] | None,
    code: Callable[[Tensor], Coded],
    shards: int = 1,
    hidden: int = 48,
) -> dict[str, Tensor]:
    """The tiny model, its decoder's linears coded; returns the weights that it should have."""
    tiny.save(folder, hidden=hidden, tie=False)
    stored: dict[str, Tensor] = {}
    expected = load_file(folder / "model.safetensors")
    for name, weight in list(expected.items()):
        if name.endswith("proj.weight"):
            parts, expected[name] = code(weight)
            stored |= {name.removesuffix("weight") + end: part.contiguous() for end, part in parts.items()}
        else:
            stored[name] = weight
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        names = sorted(stored)
        where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}  # codes and scales apart
        for file in set(where.values()):
            save_file({n: stored[n] for n in names if where[n] == file}, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if said is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return expected


def assert_becomes(folder: Path, expected: dict[str, Tensor], stored: str) -> None:
    facts = sources.from_path(str(folder), "", folder.parent / "out")
    assert facts["stored"] == stored
    out = load_file(folder.parent / "out" / "model.safetensors")
    assert out.keys() == expected.keys()
    assert {values.dtype for values in out.values()} == {torch.float32}
    assert [name for name in expected if not torch.equal(out[name], expected[name])] == []
    assert "quantization_config" not in json.loads((folder.parent / "out" / "config.json").read_text())
    assert saved.load_model(folder.parent / "out").generation_config.eos_token_id == 2


def in_blocks(weight: Tensor, rows: int, columns: int, scale_dtype: torch.dtype = torch.float32) -> Coded:
    """FP8, a scale a block, by a plain loop over the blocks; the last ones may be cut."""
    codes, value = torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros_like(weight)
    scale = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns), dtype=scale_dtype)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scale[i, j] = weight[at].abs().max() / 448
            codes[at] = (weight[at] / scale[i, j].float()).to(torch.float8_e4m3fn)
            value[at] = codes[at].float() * scale[i, j].float()
    return {"weight": codes, "weight_scale_inv": scale}, value


GROUPED = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16}


SCHEMES = {
    "pack-quantized": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"},
    "pack-quantized, asymmetric": GROUPED,
    "int-quantized": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "float-quantized": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"},
    "float-quantized, blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]},
}


def compressed(scheme: QuantizationScheme, layout: str) -> Callable[[Tensor], Coded]:
    """The library's own compressor writes the codes; the value is worked out from codes that are known before."""
    args = scheme.weights
    assert args is not None

    def code(weight: Tensor) -> Coded:
        group = {"group": args.group_size, "channel": weight.shape[1]}.get(args.strategy)
        if args.strategy == "block":
            parts, value = in_blocks(weight, 32, 32, torch.bfloat16)
            return {"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"]}, value
        top = 448 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
        grouped = weight.unflatten(1, (-1, group or weight.shape[1]))
        scale = (
            (grouped.abs().amax(dim=2) / top).bfloat16() if group else (weight.abs().max() / top).bfloat16().reshape(1)
        )
        step = scale.float().reshape(-1, scale.shape[-1], 1) if group else scale.float()
        codes = (
            (grouped / step).round().clamp(-top, top)
            if args.type == "int"
            else (grouped / step).to(torch.float8_e4m3fn)
        )
        zero = (
            torch.zeros_like(scale, dtype=torch.int8)
            if args.symmetric
            else torch.randint(-2, 3, scale.shape).to(torch.int8)
        )
        value = (codes.float() * step).flatten(1)
        if not args.symmetric:
            value = ((codes.float().clamp(-5, 4) - zero.float()[:, :, None]) * step).flatten(1)
        state = {"weight": value.clone(), "weight_scale": scale.float(), "weight_zero_point": zero}
        parts = BaseCompressor.get_value_from_registry(layout).compress(state, scheme)
        parts["weight_scale"] = scale
        return {name: part for name, part in parts.items() if part is not None}, value

    return code


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match="cannot be the teacher") as caught:
        sources.from_path(str(folder), "", folder.parent / "out")
    return str(caught.value)
