"""A quantized model's linears and norms in the form that the compiler for Hexagon NPUs puts on the NPU.

A product with integer weights is whole there if its input, its weight and its output each come through a
DequantizeLinear or go through a QuantizeLinear; all else is float16. What the compiler of QNN 2.51 and its simulator
ask for beyond ONNX:
- Codes of four bits need their zero points, though they be zero, or something else is computed.
- RMSNormalization is one operator, whose sums are wider than float16, where squares written out overflow. Of 16 rows
  it is wrong where a product of codes reads it, so the gain is a product of its own between them, and no chunk has 16
  tokens (a gain of 1 is left out again).
- A product with INT16 inputs loses the lowest eight bits of its sum of codes times codes, as if it were rounded down,
  so it lacks half of that on average. That is added behind, where float16 holds it: not behind all, as the compiler
  stores a vector once for each token of a chunk.
"""

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.export.onnx.graph import CONSTANT, Graph
from pipeline.export.onnx.grids import nibbles, on_static_grid, on_static_grids
from pipeline.export.onnx.tensors import Tensors, stored
from pipeline.export.qnn.ranges import OUTPUT, Ranges
from pipeline.quant.model import QuantizedModel

OPSET = 23  # the first that has RMSNormalization
CUT = 2**8  # what the NPU keeps multiples of, of a sum of products of codes
NOTICED = 2.0**-10  # of an output's usual magnitude, above which what it lacks is added: the spacing of float16


class QnnTensors(Tensors):
    """`Tensors`, of which linears and norms are as the NPU wants them.

    ranges: of the linears' outputs.
    """

    def __init__(self, graph: Graph, model: PreTrainedModel, quantized: QuantizedModel, ranges: Ranges) -> None:
        super().__init__(graph, model, quantized)
        self.ranges = ranges

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """RMSNorm over the last dimension; the gain is a number where rotation made it one."""
        graph, gain = self.graph, stored(self.quantized.floats[f"{name}.weight"].float(), False)
        width = len(self.quantized.floats[f"{name}.weight"])
        unit = graph.tensor(f"{CONSTANT}ones_{width}", np.ones(width, np.float32))
        normed = graph.add("RMSNormalization", x, unit, axis=-1, epsilon=epsilon)
        return graph.add("Mul", normed, graph.tensor(f"{name}.weight", gain.numpy()))

    def linear(self, x: str, name: str) -> str:
        """A linear of x [1, tokens, in]: [1, tokens, out]."""
        if name not in self.quantized.codes:
            return super().linear(x, name)
        graph, quantizer, bias = self.graph, self.quantized.inputs[name], self.quantized.floats.get(f"{name}.bias")
        weight = self._weight(name)
        parts = [self._on_grid(x, name)] if quantizer.outer is None else on_static_grids(graph, x, quantizer)
        products = [graph.add("MatMul", part, weight) for part in parts]
        steps = self.ranges.steps(name)
        outputs = [on_static_grid(graph, y, OUTPUT, step) for y, step in zip(products, steps, strict=True)]
        y = graph.add("Add", *outputs) if len(outputs) > 1 else outputs[0]
        lost = self._lost(name)
        added = [] if bias is None else [graph.tensor(f"{name}.bias", bias.float().numpy())]
        if float(lost.square().mean().sqrt()) > NOTICED * self.ranges.usual(name):
            added.append(graph.tensor(f"{CONSTANT}{name}.lost", lost.numpy()))
        return graph.add("Add", y, added[0] if len(added) == 1 else graph.add("Add", *added)) if added else y

    def _lost(self, name: str) -> Tensor:
        """What the NPU's product lacks on average, float32 [out]."""
        quantizer = self.quantized.inputs[name]
        assert quantizer.step is not None
        return (CUT - 1) / 2 * quantizer.step.scale * self.quantized.steps[name].scale.reshape(-1)

    def _weight(self, name: str) -> str:
        """A weight, turned over, [in, out], from its codes, scales and zero points."""
        graph, codes, scale = self.graph, self.quantized.codes[name].T, self.quantized.steps[name].scale.reshape(-1)
        zeros = torch.zeros(len(scale), dtype=torch.int8)
        if self.quantized.schemes[name].bits <= 4:
            weight = graph.packed(f"{name}.weight", TensorProto.INT4, codes.shape, nibbles(codes))
            zero = graph.packed(f"{name}.weight_zero_point", TensorProto.INT4, zeros.shape, nibbles(zeros))
        else:
            weight = graph.tensor(f"{name}.weight", codes.contiguous().numpy())
            zero = graph.tensor(f"{name}.weight_zero_point", zeros.numpy())
        scales = graph.tensor(f"{name}.weight_scale", scale.numpy())
        return graph.add("DequantizeLinear", weight, scales, zero, axis=1)
