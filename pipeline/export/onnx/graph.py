"""An ONNX graph in the making: nodes in order, and tensors that go to a file beside it as they are added.

Tensors of a kilobyte and more lie in that file, each at a page's start, so that a runtime maps them into memory and no
model is too large for a protobuf's 2 GB.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from onnx import NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper
from onnx import save as save_proto

OPSET = 21  # the first whose DequantizeLinear takes four bits, and groups
IR_VERSION = 10
PAGE = 4096
CONSTANT = "constant_"  # how the names of tensors begin that are no model's
INLINE = 1024  # bytes of a tensor that lies in the graph itself


class Graph:
    """Collects a graph and writes it, when it is left, to `file`, its large tensors to `file` + ".data".

    like: a graph that was written, beside `file`, with the same tensors: those that are large are read from there.
    """

    def __init__(self, file: Path, opset: int = OPSET, like: "Graph | None" = None) -> None:
        self.file, self.opset = file, opset
        self.data_file = file.with_name(file.name + ".data")
        self._there = {n: t for n, t in like._tensors.items() if t.external_data} if like else {}
        self._nodes: list[NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []

    def __enter__(self) -> "Graph":
        self._data = self.data_file.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        if not self.data_file.stat().st_size:
            self.data_file.unlink()
        if kind is None:
            graph = helper.make_graph(
                self._nodes, "decoder", self.inputs, self.outputs, initializer=list(self._tensors.values())
            )
            opsets = [helper.make_opsetid("", self.opset)]
            save_proto(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), str(self.file))
            checker.check_model(str(self.file))

    def add(self, operator: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node; returns the name of its first output, which is made of the node's own where none is given."""
        name = f"{operator}_{len(self._nodes)}"
        names = list(outputs) or [name]
        self._nodes.append(helper.make_node(operator, list(inputs), names, name=name, **attributes))
        return names[0]

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        """The equal parts of a tensor along an axis."""
        names = [f"Split_{len(self._nodes)}_{part}" for part in range(parts)]
        self.add("Split", x, outputs=names, axis=axis, num_outputs=parts)
        return names

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """The name of a small tensor; equal ones are one."""
        array: np.ndarray = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(f"{CONSTANT}{len(self._constants)}", array)
        return self._constants[key]

    def tensor(self, name: str, array: np.ndarray) -> str:
        """Add a tensor of this name."""
        proto = numpy_helper.from_array(array, name)
        return self.packed(name, proto.data_type, array.shape, proto.raw_data)

    def packed(self, name: str, data_type: int, shape: Sequence[int], content: bytes) -> str:
        """Add a tensor by its bytes, as ONNX lays out this type of element (four bits: two a byte, low half first)."""
        proto = TensorProto(name=name, data_type=data_type, dims=shape)
        there = self._there.get(name)
        if there is not None and (there.data_type, [*there.dims]) == (data_type, [*shape]):
            proto = there
        elif len(content) < INLINE:
            proto.raw_data = content
        else:
            self._data.write(b"\0" * (-self._data.tell() % PAGE))
            where = {"location": self.data_file.name, "offset": self._data.tell(), "length": len(content)}
            proto.data_location = TensorProto.EXTERNAL
            proto.external_data.extend(StringStringEntryProto(key=key, value=str(part)) for key, part in where.items())
            self._data.write(content)
        self._tensors[name] = proto
        return name

    def has(self, name: str) -> bool:
        """Whether a tensor of this name was added."""
        return name in self._tensors


def value(name: str, element: int, shape: Sequence[int | str]) -> ValueInfoProto:
    """An input or an output of a graph; a dimension that is a name is any size."""
    return helper.make_tensor_value_info(name, element, shape)
