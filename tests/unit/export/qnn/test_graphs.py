"""The graphs for a Hexagon NPU of each family that has them, run by onnxruntime on a CPU, which needs no compiler."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.rotation import rotate
from pipeline.export import llama_like
from pipeline.export.qnn import compiler as qnn_compiler
from pipeline.export.qnn import folder as qnn_folder
from pipeline.knobs.scheme import Activations, Scheme, Weights, from_short
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from tests.families import FAMILIES, family
from tests.unit.export.qnn.folders import CHUNK, on_cpu, rounded, target, written

WRITTEN = [name for name, (kind, _) in FAMILIES.items() if kind.model_type in llama_like.ARCHITECTURES]
FLIPS = 1e-3  # nats a token: other sums, and a cache in float16, put some signals on the next number of their grid
SCHEMES = {
    "default": from_short("W4A16E8H6"),
    "W8": from_short("W8A16E8g16H8g16"),
    "W3": from_short("W3A16"),
    "asymmetric inputs": Scheme(Weights(4), Activations(16, symmetric=False)),
}


def kl(logits: np.ndarray | Tensor, expected: Tensor) -> float:
    p, q = (values.double().log_softmax(dim=-1) for values in (expected, torch.as_tensor(logits)))
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def reference(quantized: QuantizedModel, model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits of one sequence, by transformers."""
    quantized.put_into(model)
    return model(input_ids=tokens[None], use_cache=False).logits[0]


@pytest.mark.parametrize(
    ("name", "turned", "scheme"),
    [
        *(("llama", False, scheme) for scheme in SCHEMES),
        *((name, False, "default") for name in WRITTEN if name != "llama"),
        *((name, True, "default") for name in ("llama", "qwen3")),
    ],
)
@pytest.mark.parametrize("context", [24, 22], ids=["by chunks", "the end by tokens"])
def test_chunk_by_chunk_and_token_by_token_the_graphs_are_the_quantized_model(
    name: str, turned: bool, scheme: str, context: int, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    model = rotate(family(name), 0) if turned else family(name)
    quantized = rounded(model, SCHEMES[scheme], tokens, valid)
    opened = on_cpu(written(quantized, family(name), tmp_path, target(tokens, context)), model, context)
    expected = reference(quantized, family(name), tokens[0])
    (predictions,) = opened.predictions(tokens[:1])
    assert len(predictions.values) == len(expected) == 20
    assert 0 <= kl(predictions.values, expected) < FLIPS
    assert {name: len(seconds) for name, seconds in opened.seconds.items()} == (
        {"chunk.onnx": 3, "token.onnx": 0} if context == 24 else {"chunk.onnx": 2, "token.onnx": 4}
    )


def test_a_continuation_is_that_of_the_whole_text(tokens: Tensor, valid: Tensor, tmp_path: Path):
    quantized = rounded(family("qwen3"), SCHEMES["default"], tokens, valid)
    opened = on_cpu(written(quantized, family("qwen3"), tmp_path, target(tokens)), family("qwen3"))
    (text,) = opened.continuations(tokens[:1, :13], 8)
    model = family("qwen3")
    quantized.put_into(model)
    whole = torch.cat([tokens[0, :13], torch.tensor(text)])
    logits = model(input_ids=whole[None], use_cache=False).logits[0]
    for position, token in enumerate(text, start=12):
        assert float(logits[position].max() - logits[position, token]) < 0.05


def test_what_lies_in_places_that_are_not_filled_does_not_count(tokens: Tensor, valid: Tensor, tmp_path: Path):
    quantized = rounded(family("mistral"), SCHEMES["default"], tokens, valid)
    opened = on_cpu(written(quantized, family("mistral"), tmp_path, target(tokens)), family("mistral"))
    clean, other = opened.empty(), {name: cache + np.float16(3.0) for name, cache in opened.empty().items()}
    first, second = (opened.read(tokens[0, :13].numpy(), cache) for cache in (clean, other))
    assert np.array_equal(first, second)


def test_what_few_tokens_reach_has_a_range_of_its_own(tokens: Tensor, valid: Tensor, tmp_path: Path):
    name, scheme = "model.layers.0.mlp.down_proj", Activations(16)
    quantized = rounded(family("llama"), SCHEMES["default"], tokens, valid)
    inner = quantized.inputs[name].step
    assert inner is not None
    small = Step(inner.scale / 64, inner.zero)
    quantized.inputs[name] = Quantizer(scheme, small, inner)
    folder = written(quantized, family("llama"), tmp_path, target(tokens))
    expected = reference(quantized, family("llama"), tokens[0])
    (predictions,) = on_cpu(folder, family("llama")).predictions(tokens[:1])
    assert 0 <= kl(predictions.values, expected) < FLIPS
    graph = onnx.load(folder / "graphs" / "chunk.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1].startswith("Dequantize")]
    weights = [list(same) for _, same in itertools.groupby(products, key=lambda node: node.input[1])]
    assert sorted(map(len, weights)) == 13 * [1] + [2]
    quantized.inputs[name] = Quantizer(scheme, small)
    assert kl(reference(quantized, family("llama"), tokens[0]), expected) > FLIPS


def test_every_shape_is_fixed_and_every_weight_of_four_bits_has_its_zero_points(
    tokens: Tensor, valid: Tensor, tmp_path: Path
):
    quantized = rounded(family("qwen2"), SCHEMES["default"], tokens, valid)
    folder = written(quantized, family("qwen2"), tmp_path, target(tokens))
    for name, length in zip(qnn_compiler.GRAPHS, (CHUNK, 1), strict=True):
        graph = onnx.shape_inference.infer_shapes(onnx.load(folder / "graphs" / name)).graph
        values = [*graph.input, *graph.output, *graph.value_info]
        assert all(d.HasField("dim_value") for v in values for d in v.type.tensor_type.shape.dim)
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        assert shapes["past_key_values.1.key"] == [1, 2, 24 - length, 8]
        assert shapes["present.1.value"] == [1, 2, length, 8]
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        of_weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in types]
        assert len(of_weights) == 14
        assert all(types[n.input[2]] == types[n.input[0]] == onnx.TensorProto.INT4 for n in of_weights)


def test_both_graphs_read_their_weights_from_one_file(tokens: Tensor, valid: Tensor, tmp_path: Path):
    quantized = rounded(family("llama"), SCHEMES["W8"], tokens, valid)
    graphs = written(quantized, family("llama"), tmp_path, target(tokens)) / "graphs"
    assert sorted(file.name for file in graphs.iterdir()) == ["chunk.onnx", "chunk.onnx.data", "token.onnx"]


def test_what_float16_does_not_hold_is_refused(tokens: Tensor, valid: Tensor, tmp_path: Path):
    model = family("llama")
    model.get_input_embeddings().weight *= 1e5
    model.lm_head.weight.data = model.lm_head.weight.clone()
    quantized = rounded(model, dataclasses.replace(SCHEMES["default"], embedding=Weights(0)), tokens, valid)
    with pytest.raises(ValueError, match=r"values up to .* pass through the model, and the NPU computes in float16"):
        qnn_folder.write_graphs(quantized, model, tmp_path, target(tokens))
