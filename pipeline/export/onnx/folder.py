"""ONNX: a decoder with KV cache and a genai_config.json, as onnxruntime-genai runs it, and onnxruntime and OpenVINO do.

Weights are codes and scales in front of each product, inputs and KV cache are on their grids. On a CPU, onnxruntime
would compute such products with inputs of 8 bits; genai_config.json tells it not to, and so must whoever opens
the file without it: session option `session.qdq_matmulnbits_accuracy_level`, "1".
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from transformers import PreTrainedModel

from pipeline.artifacts.contract import write_json
from pipeline.export.onnx import architecture, tensors
from pipeline.export.onnx.decoder import Decoder
from pipeline.export.onnx.graph import CONSTANT, Graph
from pipeline.models import layout, saved, vocabulary
from pipeline.quant.model import QuantizedModel

WEIGHTS = "model.onnx"
INTEGERS = (TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8, TensorProto.UINT8)  # types of codes
SHOWN = 8  # tensors that are named
EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}  # products in float32


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path) -> None:
    """Write graph, tensors, genai_config.json and the teacher's tokenizer.

    Args:
        model: the float model, which gives the config. teacher: its folder.

    Raises:
        ValueError: the graph does not have this KV cache.
    """
    problem = architecture.cache_problem(quantized.kv_cache)
    if problem:
        raise ValueError(f"ONNX cannot hold this model: {problem}")
    quantized.untie(model)
    with Graph(out / WEIGHTS) as graph:
        Decoder(graph, model, quantized).write()
    tokenizer = saved.load_tokenizer(teacher)
    tokenizer.save_pretrained(out)
    write_json(out / "genai_config.json", genai_config(model, tokenizer))


def genai_config(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """What onnxruntime-genai has to know of a model: names of inputs and outputs, sizes, tokens, greedy search."""
    config, ends = model.config, vocabulary.end_tokens(model)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    usual = ends[0] if ends else 0
    bos, pad = (usual if token is None else token for token in (tokenizer.bos_token_id, tokenizer.pad_token_id))
    decoder = {
        "filename": WEIGHTS,
        "head_size": size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **EXACT},
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    longest = config.max_position_embeddings
    return {
        "model": {
            "type": config.model_type,
            "vocab_size": config.vocab_size,
            "context_length": longest,
            "bos_token_id": bos,
            "eos_token_id": ends,
            "pad_token_id": pad,
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": longest, "past_present_share_buffer": False},
    }


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Read the file with onnx's own reader, and compare codes, scales, zero points and float tensors.

    Raises:
        ValueError: tensors are missing, foreign, or not those that were quantized, bit for bit; names them.
    """
    initializers = onnx.load(folder / WEIGHTS).graph.initializer
    stored = {tensor.name: tensor for tensor in initializers if not tensor.name.startswith(CONSTANT)}
    compare(quantized, model, stored, WEIGHTS)


def compare(quantized: QuantizedModel, model: PreTrainedModel, stored: dict[str, TensorProto], where: str) -> None:
    """Compare the tensors of a file, which are taken out of `stored`, with the quantized model's.

    Raises:
        ValueError: as `check`.
    """
    embedding = layout.embedding(model)
    wrong, missing = [], []
    for name, values in quantized.floats.items():
        is_rows = embedding is not None and name == f"{embedding.name}.weight"
        if name not in stored:
            missing.append(name)
        elif not np.array_equal(_array(stored.pop(name)), tensors.stored(values, is_rows).float().numpy()):
            wrong.append(name)
    for name, codes in quantized.codes.items():
        try:
            theirs = _read(stored, name, columns=embedding is None or name != embedding.name)
        except KeyError as error:
            missing.append(str(error.args[0]))
            continue
        if not all(np.array_equal(a, b.numpy()) for a, b in zip(theirs, (codes, *quantized.steps[name]), strict=True)):
            wrong.append(name)
    problems = {"missing": sorted(missing), "foreign": sorted(stored), "others than were written": wrong}
    if any(problems.values()):
        told = ", ".join(f"{what}: {names[:SHOWN]}" for what, names in problems.items() if names)
        raise ValueError(f"tensors read back from {where} are not those that were written; {told}")


def _read(stored: dict[str, TensorProto], name: str, columns: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], scales and zero points [out, groups] of a weight, whose tensors are taken out of `stored`.

    columns: whether an output's codes are a column in the file, or a row.

    Raises:
        KeyError: the file lacks one of the tensors.
    """
    if f"{name}.high.weight" in stored:
        (high, scale, high_zero), (low, low_scale, low_zero) = (
            _read(stored, f"{name}.{plane}", columns) for plane in ("high", "low")
        )
        if not np.array_equal(scale, 16 * low_scale):
            low_scale = np.full_like(scale, np.nan)
        return 16 * high + low, low_scale, 16 * high_zero + low_zero
    codes, scale = (_array(stored.pop(f"{name}.{part}")) for part in ("weight", "weight_scale"))
    zero_point = stored.pop(f"{name}.weight_zero_point", None)
    zero = np.zeros_like(scale) if zero_point is None else _array(zero_point)
    if scale.ndim == 1:
        scale, zero = scale[:, None], zero[:, None]
    elif columns:
        scale, zero = scale.T, zero.T
    return codes.T if columns else codes, scale, zero


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's numbers: int16 of codes and zero points, else float32."""
    values = numpy_helper.to_array(tensor)
    return values.astype(np.int16 if tensor.data_type in INTEGERS else np.float32)
