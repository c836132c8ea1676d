"""Our grids in ONNX's own operators: weights as codes and scales, and what puts a signal on its grid.

Nothing is rounded again: DequantizeLinear computes (codes - zero point) * scale in float32, as we do. A static grid of
8 or 16 bits is a QuantizeLinear and a DequantizeLinear, which compilers of devices look for; any other is written out.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from pipeline.export.onnx.graph import Graph
from pipeline.knobs.scheme import KVCache, Weights
from pipeline.quant.activations import Quantizer, bounds
from pipeline.quant.grid import Grid, Step

NORMAL, SUBNORMAL = 2.0**-14, 2.0**-24  # float16's least normal number, and what its subnormal ones are multiples of
STATIC_TYPES = {8: np.uint8, 16: np.uint16}  # by bits of a signal's grid


class Plane(NamedTuple):
    """Four of the bits of a weight's codes, [out, in], and their grid."""

    codes: Tensor
    step: Step
    scheme: Weights


def planes(codes: Tensor, step: Step, scheme: Weights) -> dict[str, Plane]:
    """The high and the low four bits of a weight: codes = 16 high + low, and zero points likewise."""
    zero = step.zero.to(torch.int16)
    high = Step(16 * step.scale, (zero >> 4).float()), replace(scheme, bits=4)
    low = Step(step.scale, (zero & 15).float()), replace(scheme, bits=4, symmetric=False)
    return {"high": Plane(codes >> 4, *high), "low": Plane((codes & 15).to(torch.uint8), *low)}


def product(graph: Graph, x: str, name: str, codes: Tensor, step: Step, scheme: Weights) -> str:
    """x [batch, tokens, in] times a weight of this name, whose codes are int8 or uint8 [out, in].

    Codes of more than four bits are two planes, since onnxruntime has a fast product in float32 for four bits alone.
    """
    if scheme.bits <= 4:
        return _by_plane(graph, x, name, Plane(codes, step, scheme))
    parts = planes(codes, step, scheme).items()
    return graph.add("Add", *(_by_plane(graph, x, f"{name}.{which}", plane) for which, plane in parts))


def _by_plane(graph: Graph, x: str, name: str, plane: Plane) -> str:
    """Codes lie turned over, [in, out], and with groups so do scales; zero points have the codes' type."""
    group, element = plane.scheme.group, TensorProto.INT4 if plane.scheme.symmetric else TensorProto.UINT4
    scale, zero = (part.T.contiguous() if group else part.reshape(-1) for part in plane.step)
    names = [
        graph.packed(f"{name}.weight", element, plane.codes.T.shape, nibbles(plane.codes.T)),
        graph.tensor(f"{name}.weight_scale", scale.numpy()),
    ]
    if not plane.scheme.symmetric:
        names.append(graph.packed(f"{name}.weight_zero_point", element, zero.shape, nibbles(zero.to(torch.uint8))))
    options: dict[str, Any] = {"axis": 0, "block_size": group} if group else {"axis": 1}
    return graph.add("MatMul", x, graph.add("DequantizeLinear", *names, **options))


def nibbles(values: Tensor) -> bytes:
    """int8 or uint8 values, row by row, two a byte, the first in the low half."""
    flat = values.contiguous().view(torch.uint8).numpy().reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, dtype=np.uint8))
    return ((flat[::2] & 15) | (flat[1::2] << 4)).tobytes()


class Table:
    """An embedding's codes, a byte each, with scales [rows, groups]: rows are looked up, and a head may share it."""

    def __init__(self, graph: Graph, name: str, codes: Tensor, step: Step, scheme: Weights) -> None:
        self.graph, self.scheme, (self.rows, self.width) = graph, scheme, codes.shape
        self.groups = step.scale.shape[1]
        self.tensors = [graph.tensor(f"{name}.weight", codes.numpy())]
        self.tensors.append(graph.tensor(f"{name}.weight_scale", step.scale.numpy()))
        if not scheme.symmetric:
            self.tensors.append(graph.tensor(f"{name}.weight_zero_point", step.zero.to(torch.uint8).numpy()))

    def look_up(self, indices: str) -> str:
        """Rows, float32 [batch, tokens, width], by indices [batch, tokens]."""
        graph = self.graph
        grouped = graph.constant([0, 0, self.groups, -1], np.int64)
        parts = [graph.add("Gather", tensor, indices, axis=0) for tensor in self.tensors]
        codes, scale, *zero = (
            graph.add("Reshape", part if number == 1 else graph.add("Cast", part, to=TensorProto.FLOAT), grouped)
            for number, part in enumerate(parts)
        )
        rows = graph.add("Mul", graph.add("Sub", codes, zero[0]) if zero else codes, scale)
        return graph.add("Reshape", rows, graph.constant([0, 0, self.width], np.int64))

    def turned_over(self) -> str:
        """The weight of a head that shares the table: float32 [width, rows]."""
        graph, group = self.graph, self.scheme.group
        codes, *grids = self.tensors
        if not group:
            grids = [graph.add("Reshape", grid, graph.constant([-1], np.int64)) for grid in grids]
        options: dict[str, Any] = {"axis": 1, "block_size": group} if group else {"axis": 0}
        return graph.add("Transpose", graph.add("DequantizeLinear", codes, *grids, **options), perm=[1, 0])


def on_grid(graph: Graph, x: str, quantizer: Quantizer) -> str:
    """A linear's input on its grid, or on its two: float32 of x's shape, [batch, tokens, width]."""
    if quantizer.step is None:
        return _by_token(graph, x, Grid(quantizer.scheme.bits, quantizer.scheme.symmetric), half=False)
    parts = on_static_grids(graph, x, quantizer)
    return graph.add("Add", *parts) if len(parts) > 1 else parts[0]


def on_static_grids(graph: Graph, x: str, quantizer: Quantizer) -> list[str]:
    """A linear's input on its static grid; on two, what the first one's range holds of it, and what lies beyond."""
    grid, step = Grid(quantizer.scheme.bits, quantizer.scheme.symmetric), quantizer.step
    assert step is not None
    if quantizer.outer is None:
        return [on_static_grid(graph, x, grid, step)]
    held = graph.add("Clip", x, *(graph.constant(float(bound)) for bound in bounds(step, grid)))
    beyond = on_static_grid(graph, graph.add("Sub", x, held), grid, quantizer.outer)
    return [on_static_grid(graph, held, grid, step), beyond]


def on_static_grid(graph: Graph, x: str, grid: Grid, step: Step) -> str:
    """A signal on one grid, whose scale and zero point are known."""
    if grid.bits in STATIC_TYPES:
        zero = 2 ** (grid.bits - 1) if grid.symmetric else int(step.zero)
        scale_and_zero = graph.constant(float(step.scale)), graph.constant(zero, STATIC_TYPES[grid.bits])
        return graph.add("DequantizeLinear", graph.add("QuantizeLinear", x, *scale_and_zero), *scale_and_zero)
    zero_point = None if grid.symmetric else graph.constant(float(step.zero))
    return _rounded(graph, x, grid, graph.constant(float(step.scale)), zero_point)


def on_cache_grid(graph: Graph, x: str, scheme: KVCache, width: int) -> str:
    """Keys or values [batch, tokens, width] as a quantized cache gives them back."""
    grid = Grid(scheme.bits, scheme.symmetric)
    if not scheme.group:
        return _by_token(graph, x, grid, half=True)
    groups = width // scheme.group
    parts = graph.add("Reshape", x, graph.constant([0, 0, groups, scheme.group], np.int64))
    rounded = _by_token(graph, parts, grid, half=True)
    return graph.add("Reshape", rounded, graph.constant([0, 0, width], np.int64))


def _by_token(graph: Graph, x: str, grid: Grid, half: bool) -> str:
    """x with a min-max grid for each row of its last dimension, the scale in float16 where `half` says so."""
    (low, high), by_row = grid.range, graph.constant([-1], np.int64)
    zero = graph.constant(0.0)
    if grid.symmetric:
        span = graph.add("ReduceMax", graph.add("Abs", x), by_row, keepdims=1)
        scale = graph.add("Div", span, graph.constant(float(high)))
    else:
        least = graph.add("Min", graph.add("ReduceMin", x, by_row, keepdims=1), zero)
        greatest = graph.add("Max", graph.add("ReduceMax", x, by_row, keepdims=1), zero)
        span = graph.add("Sub", greatest, least)
        scale = graph.add("Div", span, graph.constant(float(high - low)))
    if half:
        scale = _float16(graph, scale)
    scale = graph.add("Where", graph.add("Equal", span, zero), graph.constant(1.0), scale)
    if grid.symmetric:
        return _rounded(graph, x, grid, scale, None)
    zero_point = graph.add("Round", graph.add("Div", graph.add("Neg", least), scale))
    clipped = graph.add("Clip", zero_point, graph.constant(float(low)), graph.constant(float(high)))
    return _rounded(graph, x, grid, scale, clipped)


def _float16(graph: Graph, scale: str) -> str:
    """Scales rounded as `grid.stored_scale` rounds them."""
    narrow = graph.add("Cast", graph.add("Cast", scale, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    steps = graph.add("Ceil", graph.add("Mul", scale, graph.constant(1 / SUBNORMAL)))
    small = graph.add("Mul", graph.add("Max", steps, graph.constant(1.0)), graph.constant(SUBNORMAL))
    return graph.add("Where", graph.add("Less", scale, graph.constant(NORMAL)), small, narrow)


def _rounded(graph: Graph, x: str, grid: Grid, scale: str, zero_point: str | None) -> str:
    low, high = (graph.constant(float(bound)) for bound in grid.range)
    rounded = graph.add("Round", graph.add("Div", x, scale))
    if zero_point is not None:
        rounded = graph.add("Add", rounded, zero_point)
    rounded = graph.add("Clip", rounded, low, high)
    if zero_point is not None:
        rounded = graph.add("Sub", rounded, zero_point)
    return graph.add("Mul", rounded, scale)
