"""Grids in ONNX's operators, run by onnxruntime, beside our own on the same numbers."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from pipeline.export.onnx import grids as onnx_grids
from pipeline.export.onnx.graph import Graph, value
from pipeline.knobs.scheme import Activations, KVCache
from pipeline.quant import kv_cache
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Grid


def signal() -> Tensor:
    """float32 [2, 5, 24]: random, with zeros, ties between two codes, an outlier, and a token next to nothing."""
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    x[0, 1] = 0
    x[0, 2] *= 1e-7
    x[0, 3] = x[0, 3].abs()
    x[1, 4, 3] = 300.0
    x[1, 0] = torch.arange(24) / 2
    return x


def run(folder: Path, build) -> Tensor:  # type: ignore[no-untyped-def]
    """What a graph makes of the signal."""
    with Graph(folder / "grid.onnx") as graph:
        graph.inputs.append(value("x", TensorProto.FLOAT, [2, 5, 24]))
        graph.outputs.append(value("y", TensorProto.FLOAT, [2, 5, 24]))
        graph.add("Identity", build(graph), outputs=["y"])
    session = onnxruntime.InferenceSession(folder / "grid.onnx")
    return torch.from_numpy(session.run(None, {"x": signal().numpy()})[0])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("bits", [4, 6, 8, 16])
def test_inputs_lie_on_their_grid(bits: int, dynamic: bool, symmetric: bool, tmp_path: Path):
    scheme, step = Activations(bits, symmetric, dynamic), None
    if not dynamic:
        least, greatest = torch.tensor(-1.7), torch.tensor(2.9)  # what is beyond is clipped
        step = Grid(bits, symmetric).step(least, greatest, torch.float32)
    quantizer = Quantizer(scheme, step)
    assert torch.equal(run(tmp_path, lambda graph: onnx_grids.on_grid(graph, "x", quantizer)), quantizer(signal()))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [6, 8, 16])
def test_inputs_lie_on_two_grids(bits: int, symmetric: bool, tmp_path: Path):
    grid = Grid(bits, symmetric)
    steps = (grid.step(*torch.tensor(ends), torch.float32) for ends in ((-1.7, 2.9), (-2.0, 297.1)))
    quantizer = Quantizer(Activations(bits, symmetric), *steps)
    assert torch.equal(run(tmp_path, lambda graph: onnx_grids.on_grid(graph, "x", quantizer)), quantizer(signal()))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 8, 12])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_keys_and_values_lie_on_theirs(bits: int, group: int, symmetric: bool, tmp_path: Path):
    scheme = KVCache(bits, symmetric, group)
    heads = signal().view(2, 5, 3, 8).transpose(1, 2)
    expected = kv_cache.fake_quantize(heads, scheme).transpose(1, 2).reshape(2, 5, 24)
    cached = run(tmp_path, lambda graph: onnx_grids.on_cache_grid(graph, "x", scheme, 24))
    assert torch.equal(cached, expected)


@pytest.mark.parametrize(("low", "high", "element"), [(-8, 8, np.int8), (0, 16, np.uint8)])
def test_two_codes_share_a_byte(low: int, high: int, element: type, tmp_path: Path):
    codes = torch.from_numpy(np.random.default_rng(0).integers(low, high, (3, 5)).astype(element))
    kind = TensorProto.INT4 if low else TensorProto.UINT4
    with Graph(tmp_path / "codes.onnx") as graph:
        graph.packed("codes", kind, codes.shape, onnx_grids.nibbles(codes))
        graph.outputs.append(value("y", TensorProto.FLOAT, [3, 5]))
        graph.add("DequantizeLinear", "codes", graph.constant(1.0), outputs=["y"])
    (read,) = onnxruntime.InferenceSession(tmp_path / "codes.onnx").run(None, {})
    assert np.array_equal(read, codes.numpy())
