"""An ONNX decoder without the grids of its signals: inputs and KV cache in float, weights as they are.

Where another order of float32 sums puts a signal on the next number of its grid, two runtimes that compute the same are
a step apart. Without grids, all that can differ is the order of sums.
"""

from onnx import ModelProto, NodeProto


def without_grids(model: ModelProto) -> ModelProto:
    """A copy of an exported graph in which signals are not rounded; the tensors beside it are the same."""
    plain = ModelProto()
    plain.CopyFrom(model)
    producers = {name: node for node in plain.graph.node for name in node.output}
    instead = {node.output[0]: source for node in plain.graph.node if (source := _source(node, producers))}
    kept = [node for node in plain.graph.node if node.output[0] not in instead and node.op_type != "QuantizeLinear"]
    for node in kept:
        for i, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[i] = name
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    return plain


def _source(node: NodeProto, producers: dict[str, NodeProto]) -> str:
    """What a node rounds, or holds within a grid's range after it was rounded; empty where it does neither."""
    before = producers.get(node.input[0]) if node.input else None
    if node.op_type == "DequantizeLinear" and before is not None and before.op_type == "QuantizeLinear":
        return before.input[0]
    if node.op_type == "Round":
        return node.input[0]
    if node.op_type == "Clip" and before is not None:
        if before.op_type == "Add":
            before = producers.get(before.input[0])
        return node.input[0] if before is not None and before.op_type == "Round" else ""
    return ""
