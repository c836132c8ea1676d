"""Codes, scales and other constants of a program, read by ExecuTorch's own reader and flatc, which comes with it.

XNNPACK's part of a program is a graph for each stretch that it computes. In it, a linear names its weight and its
scales by their hashes; what bears these names lies in the program. 4-bit codes lie two a byte, the first in the low
half, 8 more than they are.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.export.executorch import package

CODES = {"xnn_datatype_qcint4": 4, "xnn_datatype_qcint8": 8}  # bits of a stored code, by XNNPACK's name for the type
SIZES = {"BYTE": 1, "CHAR": 1, "HALF": 2, "BFLOAT16": 2, "FLOAT": 4, "INT": 4, "LONG": 8}  # bytes of a number
LOOKED_UP = "quantized_decomposed::embedding_byte"
INFINITE = re.compile(rb"(?<=[\s:\[])([+-]?)inf\b")  # flatc writes it so, which is no JSON


class Weight(NamedTuple):
    """int8 codes [out, in] and float32 scales [out]."""

    codes: Tensor
    scale: Tensor


class Stored(NamedTuple):
    """What lies in a program.

    linears: with codes, in the order in which they are multiplied. tables: embeddings with codes. constants: all else,
    as bytes.
    """

    linears: list[Weight]
    tables: list[Weight]
    constants: set[bytes]


def stored(file: Path) -> Stored:
    """Read a program.

    Raises:
        ValueError: it is none.
    """
    package.register()
    with package.quietly():
        from executorch.exir._serialize._program import deserialize_pte_binary

        pte = deserialize_pte_binary(file.read_bytes())
    program, named = pte.program, pte.named_data
    data = {} if named is None else {key: bytes(named.buffers[at.buffer_index]) for key, at in named.pte_data.items()}
    plan = next(plan for plan in program.execution_plan if plan.name == "forward")
    linears, tables = list[Weight](), list[Weight]()
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        kind = type(call).__name__
        if kind == "DelegateCall":
            place = plan.delegates[call.delegate_index].processed.index
            linears += _linears(_graph(bytes(program.backend_delegate_data[place].data)), data)
        elif kind == "KernelCall" and plan.operators[call.op_index].name == LOOKED_UP:
            codes, scale = (_constant(program, plan.values[value].val) for value in call.args[:2])
            rows = plan.values[call.args[0]].val.sizes[0]
            tables.append(Weight(_codes(codes, [rows, len(codes) // rows], 8), _floats(scale)))
    values = [value.val for value in plan.values if type(value.val).__name__ == "Tensor"]
    constants = {_constant(program, value) for value in values if value.data_buffer_idx and not value.allocation_info}
    return Stored(linears, tables, constants | set(data.values()))


def _constant(program: Any, tensor: Any) -> bytes:
    """A constant of the program, without what fills up its place."""
    size = math.prod(tensor.sizes) * SIZES.get(tensor.scalar_type.name, 1)
    return bytes(program.constant_buffer[tensor.data_buffer_idx].storage)[:size]


def _graph(payload: bytes) -> dict[str, Any]:
    """A graph of XNNPACK's, as its schema has it."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as serialized
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = serialized.XNNHeader.from_bytes(payload[: serialized.XNNHeader.EXPECTED_LENGTH])
    begin, size = header.flatbuffer_offset, header.flatbuffer_size
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(serialized._get_schema_bytes())
        binary.write_bytes(payload[begin : begin + size])
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = Path(folder, "graph.json").read_bytes()
    graph: dict[str, Any] = json.loads(INFINITE.sub(rb"0", text))
    return graph


def _linears(graph: dict[str, Any], data: dict[str, bytes]) -> Iterator[Weight]:
    """The linears of a graph whose weights are codes, in its order."""
    keys = [constant["named_key"] for constant in graph["constant_data"]]
    values = {_tensor(value["xvalue_union"])["id_out"]: value["xvalue_union"] for value in graph["xvalues"]}
    for node in graph["xnodes"]:
        if node["xnode_union_type"] != "XNNFullyConnected":
            continue
        weight = values[node["xnode_union"]["filter_id"]]
        bits = CODES.get(_tensor(weight)["datatype"])
        if bits is not None:
            content = data[keys[_tensor(weight)["constant_buffer_idx"]]]
            scale = data[keys[weight["quant_params"]["scale_buffer_idx"]]]
            yield Weight(_codes(content, _tensor(weight)["dims"], bits), _floats(scale))


def _tensor(value: dict[str, Any]) -> dict[str, Any]:
    """A value of XNNPACK's, quantized or not."""
    tensor: dict[str, Any] = value.get("tensor_value", value)
    return tensor


def _floats(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.float32).copy())


def _codes(content: bytes, shape: list[int], bits: int) -> Tensor:
    """int8 [out, in]."""
    stored_codes = np.frombuffer(content, np.uint8)
    if bits == 8:
        codes = stored_codes.view(np.int8)
    else:
        codes = np.stack([stored_codes & 15, stored_codes >> 4], axis=-1).astype(np.int8).reshape(-1) - np.int8(8)
    return torch.from_numpy(codes.reshape(shape).copy())
