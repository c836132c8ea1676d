"""A decoder with a KV cache as an ONNX graph, of ONNX's own operators alone, so that every runtime has them.

Inputs and outputs are those that onnxruntime-genai looks for: input_ids and position_ids, int64 [batch, tokens];
attention_mask, int64 [batch, past + tokens], 0 where there is nothing to see; past_key_values.N.key and .value, float32
[batch, key heads, past, head size]. Logits, float32 [batch, tokens, vocabulary], and present.N.key and .value, which
are the past of the next call.

Query heads that share a key head are rows of one matrix product.
"""

from typing import Any

import numpy as np
from onnx import TensorProto
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.export.onnx import grids
from pipeline.export.onnx.graph import Graph, value
from pipeline.export.onnx.tensors import Tensors
from pipeline.models import layout
from pipeline.quant.model import QuantizedModel

HIDDEN = -3.0e38  # added to the score of what a token does not see
SWAP = [0, 2, 1, 3]  # [batch, tokens, heads, size] to [batch, heads, tokens, size], and back


class Decoder:
    """Writes a quantized model into a graph.

    model: the float model, which gives config and structure. quantized: its numbers.
    """

    def __init__(self, graph: Graph, model: PreTrainedModel, quantized: QuantizedModel) -> None:
        self.graph, self.model, self.config = graph, model, model.config
        self.tensors, self.kv_cache = Tensors(graph, model, quantized), quantized.kv_cache
        self.heads, self.key_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        self.size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads

    def write(self) -> None:
        """Add everything: inputs, nodes, tensors, outputs."""
        graph, config, tokens = self.graph, self.config, ["batch", "tokens"]
        self.tensors.begin()
        for name, shape in (("input_ids", tokens), ("attention_mask", ["batch", "total"]), ("position_ids", tokens)):
            graph.inputs.append(value(name, TensorProto.INT64, shape))
        graph.outputs.append(value("logits", TensorProto.FLOAT, [*tokens, config.vocab_size]))
        (prefix, layers), (decoder_name, decoder) = layout.decoder_layers(self.model), layout.text_decoder(self.model)
        self.cosine, self.sine = self._angles(decoder.rotary_emb)
        windows = [sliding_window(config, number) for number in range(len(layers))]
        masks = {window: self._mask(window) for window in dict.fromkeys(windows)}
        x = self.tensors.embed("input_ids")
        for number, (window, layer) in enumerate(zip(windows, layers, strict=True)):
            x = self._layer(x, number, f"{prefix}.{number}", layer, masks[window])
        x = self._norm(x, f"{decoder_name}.norm", decoder.norm)
        head = layout.head(self.model)
        assert head is not None
        graph.add("Identity", self.tensors.linear(x, head.name), outputs=["logits"])

    def _angles(self, rotary: Any) -> tuple[str, str]:
        """Cosine and sine of the rotary embedding: float32 [batch, 1, tokens, size]."""
        graph = self.graph
        positions = graph.add("Cast", "position_ids", to=TensorProto.FLOAT)
        positions = graph.add("Unsqueeze", positions, graph.constant([1, 3], np.int64))
        turns = graph.add("Mul", positions, graph.constant(rotary.inv_freq.float().numpy()))
        turns = graph.add("Concat", turns, turns, axis=-1)
        cosine, sine = graph.add("Cos", turns), graph.add("Sin", turns)
        if rotary.attention_scaling != 1.0:
            factor = graph.constant(rotary.attention_scaling)
            cosine, sine = graph.add("Mul", cosine, factor), graph.add("Mul", sine, factor)
        return cosine, sine

    def _mask(self, window: int) -> str:
        """What is added to the scores, float32 [batch, 1, query heads a key head * tokens, total]."""
        graph = self.graph
        zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        total, tokens = (graph.add("Gather", graph.add("Shape", x), one) for x in ("attention_mask", "input_ids"))
        keys = graph.add("Range", zero, total, one)
        queries = graph.add("Range", graph.add("Sub", total, tokens), total, one)
        queries = graph.add("Unsqueeze", queries, graph.constant([1], np.int64))
        allowed = graph.add("LessOrEqual", keys, queries)
        if window:
            edge = graph.add("Sub", queries, graph.constant(window, np.int64))
            allowed = graph.add("And", allowed, graph.add("Greater", keys, edge))
        there = graph.add("Greater", "attention_mask", zero)
        allowed = graph.add("And", graph.add("Unsqueeze", there, graph.constant([1, 2, 3], np.int64)), allowed)
        mask = graph.add("Where", allowed, graph.constant(0.0), graph.constant(HIDDEN))
        mask = graph.add("Tile", mask, graph.constant([1, 1, self.heads // self.key_heads, 1, 1], np.int64))
        width = graph.add("Unsqueeze", total, graph.constant([0], np.int64))
        shape = graph.add("Concat", graph.constant([0, 1, -1], np.int64), width, axis=0)
        return graph.add("Reshape", mask, shape)

    def _layer(self, x: str, number: int, name: str, layer: Any, mask: str) -> str:
        graph, linear = self.graph, self.tensors.linear
        normed = self._norm(x, f"{name}.input_layernorm", layer.input_layernorm)
        x = graph.add("Add", x, self._attention(normed, number, f"{name}.self_attn", layer.self_attn, mask))
        normed = self._norm(x, f"{name}.post_attention_layernorm", layer.post_attention_layernorm)
        gate, up = linear(normed, f"{name}.mlp.gate_proj"), linear(normed, f"{name}.mlp.up_proj")
        activated = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up)
        return graph.add("Add", x, linear(activated, f"{name}.mlp.down_proj"))

    def _attention(self, x: str, number: int, name: str, attention: Any, mask: str) -> str:
        graph, by_head = self.graph, self.graph.constant([0, self.key_heads, -1, self.size], np.int64)
        query, key, values = (
            self._shaped(self.tensors.linear(x, f"{name}.{part}_proj"), heads)
            for part, heads in (("q", self.heads), ("k", self.key_heads), ("v", self.key_heads))
        )
        if hasattr(attention, "q_norm"):
            query = self._norm(query, f"{name}.q_norm", attention.q_norm)
            key = self._norm(key, f"{name}.k_norm", attention.k_norm)
        query, key, values = (graph.add("Transpose", part, perm=SWAP) for part in (query, key, values))
        query, key = self._turned(query), self._turned(key)
        key, values = self._cached(key, f"{number}.key"), self._cached(values, f"{number}.value")
        query = graph.add("Reshape", graph.add("Mul", query, graph.constant(attention.scaling)), by_head)
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
        weights = graph.add("Softmax", graph.add("Add", scores, mask), axis=-1)
        mixed = graph.add("MatMul", weights, values)
        mixed = graph.add("Reshape", mixed, graph.constant([0, self.heads, -1, self.size], np.int64))
        mixed = graph.add("Transpose", mixed, perm=SWAP)
        mixed = graph.add("Reshape", mixed, graph.constant([0, 0, self.heads * self.size], np.int64))
        return self.tensors.linear(mixed, f"{name}.o_proj")

    def _shaped(self, x: str, heads: int) -> str:
        """[batch, tokens, heads, size] of a projection."""
        return self.graph.add("Reshape", x, self.graph.constant([0, 0, heads, self.size], np.int64))

    def _turned(self, x: str) -> str:
        """The rotary embedding of [batch, heads, tokens, size]: one half of a head turns with the other."""
        graph = self.graph
        first, second = graph.split(x, 2, axis=-1)
        other = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
        return graph.add("Add", graph.add("Mul", x, self.cosine), graph.add("Mul", other, self.sine))

    def _cached(self, x: str, name: str) -> str:
        """New keys or values [batch, heads, tokens, size] behind those of the past."""
        graph, past, present = self.graph, f"past_key_values.{name}", f"present.{name}"
        if self.kv_cache.bits:
            width = graph.constant([0, 0, self.key_heads * self.size], np.int64)
            rows = graph.add("Reshape", graph.add("Transpose", x, perm=SWAP), width)
            rows = grids.on_cache_grid(graph, rows, self.kv_cache, self.key_heads * self.size)
            x = graph.add("Transpose", self._shaped(rows, self.key_heads), perm=SWAP)
        for names, length in ((graph.inputs, "past"), (graph.outputs, "total")):
            name = past if length == "past" else present
            names.append(value(name, TensorProto.FLOAT, ["batch", self.key_heads, length, self.size]))
        return graph.add("Concat", past, x, outputs=[present], axis=2)

    def _norm(self, x: str, name: str, module: Any) -> str:
        return self.tensors.norm(x, name, module.variance_epsilon)


def sliding_window(config: PreTrainedConfig, number: int) -> int:
    """How many tokens a layer sees, its own included; 0: all."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds[number] == "sliding_attention" if kinds else config.model_type == "mistral"
    return (getattr(config, "sliding_window", None) or 0) if slides else 0
