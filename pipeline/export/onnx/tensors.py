"""A quantized model's own tensors in an ONNX graph, and the operators that read them: embedding, linears, norms, head.

What is not quantized keeps its dtype in the file and is widened to float32 where it is read.
"""

from functools import cached_property

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.export.onnx import grids
from pipeline.export.onnx.graph import Graph
from pipeline.models import layout
from pipeline.quant.activations import to_json
from pipeline.quant.model import QuantizedModel


def stored(values: Tensor, is_rows: bool) -> Tensor:
    """A float tensor as it lies in the file: a linear's weight turned over, a norm's constant gain as one number.

    is_rows: whether it is an embedding, whose rows are looked up.
    """
    if values.ndim == 1 and bool((values == values[0]).all()):
        return values[:1]
    return values if is_rows or values.ndim < 2 else values.T.contiguous()


class Tensors:
    """Adds a quantized model's tensors to a graph as they are asked for.

    model: the float model, which gives the structure. quantized: its numbers.
    """

    def __init__(self, graph: Graph, model: PreTrainedModel, quantized: QuantizedModel) -> None:
        embedding = layout.embedding(model)
        assert embedding is not None
        self.graph, self.quantized, self.embedding = graph, quantized, embedding.name
        self._inputs: dict[tuple[str, ...], str] = {}

    @cached_property
    def _table(self) -> grids.Table:
        """The embedding's codes, which enter the graph where they are first asked for."""
        name, quantized = self.embedding, self.quantized
        grid = quantized.steps[name], quantized.schemes[name]
        return grids.Table(self.graph, name, quantized.codes[name], *grid)

    def begin(self) -> None:
        """Add the embedding's codes, where it has any, before all else."""
        if self.embedding in self.quantized.codes:
            self._table  # noqa: B018 (it is made here)

    def embed(self, indices: str) -> str:
        """Rows of the embedding: float32 [batch, tokens, width]."""
        if self.embedding in self.quantized.codes:
            return self._table.look_up(indices)
        table, values = self._float_table()
        return self._wide(self.graph.add("Gather", table, indices, axis=0), values)

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """RMSNorm over the last dimension, in the operators that runtimes make one of.

        Rotation makes a norm's gains one number. That divides the root instead, so that no product with a vector is
        left, which not every compiler takes.
        """
        graph, gain = self.graph, stored(self.quantized.floats[f"{name}.weight"].float(), False)
        factor = graph.tensor(f"{name}.weight", gain.numpy())
        square = graph.add("Pow", x, graph.constant(2.0))
        mean = graph.add("ReduceMean", square, graph.constant([-1], np.int64), keepdims=1)
        root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(epsilon)))
        if gain.numel() == 1:
            return graph.add("Div", x, graph.add("Div", root, factor))
        return graph.add("Mul", graph.add("Div", x, root), factor)

    def linear(self, x: str, name: str) -> str:
        """A linear of x [batch, tokens, in], on its grid where it has one: [batch, tokens, out]."""
        graph, quantized = self.graph, self.quantized
        if name in quantized.inputs:
            x = self._on_grid(x, name)
        product, bias = self._product(x, name), quantized.floats.get(f"{name}.bias")
        if bias is not None:
            product = graph.add("Add", product, graph.tensor(f"{name}.bias", stored(bias, False).float().numpy()))
        return product

    def _on_grid(self, x: str, name: str) -> str:
        """x on the grid of a linear's input, which is often that of the others that read it."""
        quantizer = self.quantized.inputs[name]
        key = (x, str(to_json({"": quantizer})))
        if key not in self._inputs:
            self._inputs[key] = grids.on_grid(self.graph, x, quantizer)
        return self._inputs[key]

    def _product(self, x: str, name: str) -> str:
        """x times a linear's weight, which may be the embedding's, turned over."""
        graph, quantized, key = self.graph, self.quantized, f"{name}.weight"
        if name in quantized.codes:
            grid = quantized.steps[name], quantized.schemes[name]
            return grids.product(graph, x, name, quantized.codes[name], *grid)
        if key in quantized.floats:
            values = stored(quantized.floats[key], False)
            return graph.add("MatMul", x, self._wide(self._float(key, values), values))
        if self.embedding in quantized.codes:
            return graph.add("MatMul", x, self._table.turned_over())
        table, values = self._float_table()
        return graph.add("MatMul", x, graph.add("Transpose", self._wide(table, values), perm=[1, 0]))

    def _float_table(self) -> tuple[str, Tensor]:
        key = f"{self.embedding}.weight"
        values = self.quantized.floats[key]
        return (key if self.graph.has(key) else self._float(key, values)), values

    def _float(self, name: str, values: Tensor) -> str:
        """Add a float tensor in its own dtype."""
        if values.dtype == torch.bfloat16:
            content = values.contiguous().view(torch.uint8).numpy().tobytes()
            return self.graph.packed(name, TensorProto.BFLOAT16, values.shape, content)
        return self.graph.tensor(name, values.contiguous().numpy())

    def _wide(self, name: str, values: Tensor) -> str:
        return name if values.dtype == torch.float32 else self.graph.add("Cast", name, to=TensorProto.FLOAT)
