"""A decoder in graphs of fixed shapes for a Hexagon NPU, and what is computed around it on the CPU.

    embedding.onnx   input_ids, int64 [1, tokens], and past_length, int64 [1], how many tokens were read before
                     -> hidden [1, tokens, width], cosine and sine [1, 1, tokens, head size], and mask
    a decoder        these, and past_key_values.N.key and .value [1, key heads, context - tokens, head size]
                     -> last_hidden [1, tokens, width], and present.N.key and .value [1, key heads, tokens, head size]
    head.onnx        last_hidden -> logits [1, tokens, vocabulary]

Ids and the length are int64, keys and values float16, all else is float32. A decoder is for one number of tokens, and
the graphs around it are for any. Whoever runs them keeps the keys and values of position p in place p of a cache, hands
over all but the cache's last `tokens` places, and puts what is new into the cache; what lies in places that were not
filled yet does not count.
"""

from typing import Any

import numpy as np
from onnx import TensorProto
from transformers import PreTrainedModel

from pipeline.export.onnx.decoder import Decoder, sliding_window
from pipeline.export.onnx.graph import Graph, value
from pipeline.export.qnn.ranges import Ranges
from pipeline.export.qnn.tensors import QnnTensors
from pipeline.models import layout
from pipeline.quant.model import QuantizedModel

UNSEEN = -30000.0  # added to the score of what a token does not see; float16 holds it, with a score


class FixedDecoder(Decoder):
    """Writes all between embedding and head, for so many tokens at once and a cache of so many places."""

    def __init__(
        self, graph: Graph, model: PreTrainedModel, quantized: QuantizedModel, ranges: Ranges, shape: tuple[int, int]
    ) -> None:
        super().__init__(graph, model, quantized)
        self.tensors = QnnTensors(graph, model, quantized, ranges)
        self.tokens, self.context = shape

    def write(self) -> None:
        """Add everything: inputs, nodes, tensors, outputs."""
        graph, width = self.graph, self.config.hidden_size
        angles, rows = [1, 1, self.tokens, self.size], self.tokens * self.heads // self.key_heads
        shapes = {"hidden": [1, self.tokens, width], "cosine": angles, "sine": angles}
        (prefix, layers), (decoder_name, decoder) = layout.decoder_layers(self.model), layout.text_decoder(self.model)
        windows = [sliding_window(self.config, number) for number in range(len(layers))]
        shapes |= {mask_name(window): [1, 1, rows, self.context] for window in windows}
        graph.inputs += [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        self.cosine, self.sine, x = "cosine", "sine", "hidden"
        for number, (window, layer) in enumerate(zip(windows, layers, strict=True)):
            x = self._layer(x, number, f"{prefix}.{number}", layer, mask_name(window))
        x = self._norm(x, f"{decoder_name}.norm", decoder.norm)
        graph.add("Identity", x, outputs=["last_hidden"])
        graph.outputs.insert(0, value("last_hidden", TensorProto.FLOAT, shapes["hidden"]))

    def _norm(self, x: str, name: str, module: Any) -> str:
        """Of heads, [1, tokens, heads, size], as of so many tokens: the compiler errs in four dimensions."""
        if module.weight.shape[0] != self.size or self.size == self.config.hidden_size:
            return super()._norm(x, name, module)
        graph = self.graph
        rows = graph.add("Reshape", x, graph.constant([1, -1, self.size], np.int64))
        normed = super()._norm(rows, name, module)
        return graph.add("Reshape", normed, graph.constant([1, self.tokens, -1, self.size], np.int64))

    def _cached(self, x: str, name: str) -> str:
        """Keys or values of the cache, and behind them the new ones, which are given out."""
        graph, past, present = self.graph, f"past_key_values.{name}", f"present.{name}"
        for names, where, length in (
            (graph.inputs, past, self.context - self.tokens),
            (graph.outputs, present, self.tokens),
        ):
            names.append(value(where, TensorProto.FLOAT16, [1, self.key_heads, length, self.size]))
        graph.add("Cast", x, outputs=[present], to=TensorProto.FLOAT16)
        return graph.add("Concat", graph.add("Cast", past, to=TensorProto.FLOAT), x, axis=2)


class Beginning(Decoder):
    """Writes what is computed before the layers: rows of the embedding, rotary angles, masks."""

    def __init__(self, graph: Graph, model: PreTrainedModel, quantized: QuantizedModel, context: int) -> None:
        super().__init__(graph, model, quantized)
        self.context = context

    def write(self) -> None:
        """Add everything."""
        graph, config, (_, decoder) = self.graph, self.config, layout.text_decoder(self.model)
        graph.inputs += [value("input_ids", TensorProto.INT64, [1, "tokens"])]
        graph.inputs += [value("past_length", TensorProto.INT64, [1])]
        zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        tokens = graph.add("Gather", graph.add("Shape", "input_ids"), one)
        past = graph.add("Squeeze", "past_length")
        positions = graph.add("Range", past, graph.add("Add", past, tokens), one)
        graph.add("Unsqueeze", positions, graph.constant([0], np.int64), outputs=["position_ids"])
        outputs = {"hidden": self.tensors.embed("input_ids")}
        outputs["cosine"], outputs["sine"] = self._angles(decoder.rotary_emb)
        places = graph.add("Range", zero, graph.constant(self.context, np.int64), one)
        for window in dict.fromkeys(sliding_window(config, number) for number in range(config.num_hidden_layers)):
            outputs[mask_name(window)] = self._fixed_mask(window, places, positions, tokens, past)
        angles = [1, 1, "tokens", self.size]
        shapes = {"hidden": [1, "tokens", config.hidden_size], "cosine": angles, "sine": angles}
        for name, source in outputs.items():
            graph.add("Identity", source, outputs=[name])
            shape = shapes.get(name, [1, 1, "rows", self.context])
            graph.outputs.append(value(name, TensorProto.FLOAT, shape))

    def _fixed_mask(self, window: int, places: str, positions: str, tokens: str, past: str) -> str:
        """What is added to the scores, float32 [1, 1, query heads a key head * tokens, context].

        places: int64 [context], of the cache and of the new tokens behind it.
        """
        graph = self.graph
        kept = graph.add("Sub", graph.constant(self.context, np.int64), tokens)
        is_new = graph.add("GreaterOrEqual", places, kept)
        of_new = graph.add("Add", graph.add("Sub", places, kept), past)
        keys = graph.add("Where", is_new, of_new, places)
        there = graph.add("Or", is_new, graph.add("Less", places, past))
        queries = graph.add("Unsqueeze", positions, graph.constant([1], np.int64))
        allowed = graph.add("And", there, graph.add("LessOrEqual", keys, queries))
        if window:
            edge = graph.add("Sub", queries, graph.constant(window, np.int64))
            allowed = graph.add("And", allowed, graph.add("Greater", keys, edge))
        mask = graph.add("Where", allowed, graph.constant(0.0), graph.constant(UNSEEN))
        mask = graph.add("Tile", mask, graph.constant([self.heads // self.key_heads, 1], np.int64))
        return graph.add("Unsqueeze", mask, graph.constant([0, 1], np.int64))


class Head(Decoder):
    """Writes the head."""

    def write(self) -> None:
        """Add everything."""
        head = layout.head(self.model)
        assert head is not None
        graph, config = self.graph, self.config
        graph.inputs.append(value("last_hidden", TensorProto.FLOAT, [1, "tokens", config.hidden_size]))
        graph.outputs.append(value("logits", TensorProto.FLOAT, [1, "tokens", config.vocab_size]))
        graph.add("Identity", self.tensors.linear("last_hidden", head.name), outputs=["logits"])


def mask_name(window: int) -> str:
    """The input that says which tokens a layer of this sliding window (0: none) sees."""
    return f"mask.{window}" if window else "mask"
