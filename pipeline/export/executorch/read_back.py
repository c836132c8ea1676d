"""Codes, scales and float tensors of a program, read by ExecuTorch's own reader and flatc, which comes with it.

A program has no names of its tensors, so they are told by where they are used. XNNPACK's part of it is a graph for each
stretch that it computes, whose nodes come in XNNPACK's order, but bear the number of the decoder's line that they are
from (debug_handle): by these they are put in the decoder's order. In a graph, a linear names its weight and its scales
by their hashes, and what bears these names lies in the program; norms and most biases are handed to the graph as its
inputs. 4-bit codes lie two a byte, the first in the low half, 8 more than they are.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.export.executorch import package

CODES = {"xnn_datatype_qcint4": 4, "xnn_datatype_qcint8": 8}  # bits of a stored code, by XNNPACK's name for the type
SIZES = {"BYTE": 1, "CHAR": 1, "HALF": 2, "BFLOAT16": 2, "FLOAT": 4, "INT": 4, "LONG": 8}  # bytes of a number
LOOKED_UP, LOOKED_UP_IN_FLOAT = "quantized_decomposed::embedding_byte", "aten::embedding"
BEFORE_ALL = -1  # in place of a line's number: the embedding is looked up before XNNPACK computes anything
WITH_VECTORS = ("XNNMultiply", "XNNAdd")  # by a norm's gain, and of a bias
INFINITE = re.compile(rb"(?<=[\s:\[])([+-]?)inf\b")  # flatc writes it so, which is no JSON


class Weight(NamedTuple):
    """int8 codes [out, in] and float32 scales [out]."""

    codes: Tensor
    scale: Tensor


class Stored(NamedTuple):
    """What lies in a program.

    linears: with codes. tables: embeddings with codes. floats: an embedding, weights, biases and norms that are in
    float, as bytes. Each in the order in which the decoder uses them.
    """

    linears: list[Weight]
    tables: list[Weight]
    floats: list[bytes]


Use = tuple[int, Weight | bytes]  # the number of the decoder's line, and a tensor of the model that it uses


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
    tables, uses = list[Weight](), list[Use]()
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        kind = type(call).__name__
        if kind == "DelegateCall":
            place = plan.delegates[call.delegate_index].processed.index
            handed = [plan.values[value].val for value in call.args]
            vectors = {i: _constant(program, value) for i, value in enumerate(handed) if _is_constant_vector(value)}
            uses += _uses(_graph(bytes(program.backend_delegate_data[place].data)), vectors, data)
        elif kind == "KernelCall" and plan.operators[call.op_index].name == LOOKED_UP:
            codes, scale = (_constant(program, plan.values[value].val) for value in call.args[:2])
            rows = plan.values[call.args[0]].val.sizes[0]
            tables.append(Weight(_codes(codes, [rows, len(codes) // rows], 8), _floats(scale)))
        elif kind == "KernelCall" and plan.operators[call.op_index].name == LOOKED_UP_IN_FLOAT:
            uses.append((BEFORE_ALL, _constant(program, plan.values[call.args[0]].val)))
    used = [tensor for _, tensor in sorted(uses, key=itemgetter(0))]  # a line's own in the order of its nodes
    linears, floats = [part for part in used if isinstance(part, Weight)], [p for p in used if isinstance(p, bytes)]
    return Stored(linears, tables, floats)


def _is_constant_vector(value: Any) -> bool:
    """Whether a value of the program is a constant [n]; what is computed has a place in memory instead."""
    if type(value).__name__ != "Tensor" or len(value.sizes) != 1:
        return False
    return bool(value.data_buffer_idx) and not value.allocation_info


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


def _uses(graph: dict[str, Any], vectors: Mapping[int, bytes], data: Mapping[str, bytes]) -> Iterator[Use]:
    """The model's tensors that the nodes of a graph use. vectors: those of its inputs that are constants [n]."""
    keys = [constant["named_key"] for constant in graph["constant_data"]]
    values = {_tensor(value["xvalue_union"])["id_out"]: value["xvalue_union"] for value in graph["xvalues"]}

    def own(value: dict[str, Any]) -> bytes:
        return data[keys[_tensor(value)["constant_buffer_idx"]]]

    for node in graph["xnodes"]:
        kind, at, line = node["xnode_union_type"], node["xnode_union"], node["debug_handle"]
        if kind == "XNNFullyConnected":
            weight, bias = values[at["filter_id"]], values.get(at["bias_id"])
            bits = CODES.get(_tensor(weight)["datatype"])
            if bits is not None:
                scale = data[keys[weight["quant_params"]["scale_buffer_idx"]]]
                yield line, Weight(_codes(own(weight), _tensor(weight)["dims"], bits), _floats(scale))
            elif _is_models(_tensor(weight), _tensor(values[at["input1_id"]])):
                yield line, own(weight)
            if bias is not None:
                yield line, own(bias)
        elif kind in WITH_VECTORS:
            for side in ("input1_id", "input2_id"):
                outside = _tensor(values[at[side]])["external_id"]
                if outside in vectors:
                    yield line, vectors[outside]


def _is_models(weight: dict[str, Any], factor: dict[str, Any]) -> bool:
    """Whether a product in float is of one of the model's linears.

    The decoder's own are a norm's mean, which has one row, and the turning of heads, whose input is [1, tokens, heads,
    head size].
    """
    return bool(weight["dims"][0] > 1 and factor["num_dims"] == 3)


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
