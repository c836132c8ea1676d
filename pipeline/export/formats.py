"""Export a quantized model to files that others load, a folder a format, and prove that they hold the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.artifacts.contract import read_json, write_json
from pipeline.export import compressed_tensors, dequantized
from pipeline.export.executorch import folder as executorch_folder
from pipeline.export.gguf import file as gguf_file
from pipeline.export.mlx import folder as mlx_folder
from pipeline.export.onnx import folder as onnx_folder
from pipeline.export.proof import EXACT, check_state, choose_dtype, probe_tokens, same_logits
from pipeline.export.qnn import folder as qnn_folder
from pipeline.export.sizes import stored_bytes, stored_weights
from pipeline.knobs.names import look_up
from pipeline.knobs.scheme import KVCache, Weights
from pipeline.models import saved, soundness
from pipeline.quant.activations import from_json
from pipeline.quant.grid import Step, stored_dtype
from pipeline.quant.model import QuantizedModel, quantize_signals

SIGNALS = "activations.json"  # how inputs and KV cache are quantized


class Format(NamedTuple):
    """How a format is written, and how what lies in the file is compared with the quantized model.

    write: the quantized model, the float one, the teacher's folder, a folder to write into; by name, what this format
    alone needs. loads: whether transformers loads it, and says the same. packed: whether it loads codes, to be
    multiplied in the dtype that the config names.
    """

    write: Callable[..., None]
    check: Callable[[QuantizedModel, PreTrainedModel, Path], None]
    loads: bool
    packed: bool = False


EXPORT_FORMATS = {
    "compressed-tensors": Format(compressed_tensors.write, compressed_tensors.check, loads=True, packed=True),
    "gguf": Format(gguf_file.write, gguf_file.check, loads=False),
    "onnx": Format(onnx_folder.write, onnx_folder.check, loads=False),
    "mlx": Format(mlx_folder.write, mlx_folder.check, loads=False),
    "qnn": Format(qnn_folder.write, qnn_folder.check, loads=False),
    "executorch": Format(executorch_folder.write, executorch_folder.check, loads=False),
    "dequantized": Format(dequantized.write, dequantized.check, loads=True),
}


def export(quantized: QuantizedModel, teacher: str | Path, format_name: str, out: Path, **needs: Any) -> dict[str, Any]:
    """Write a quantized model into `out`, reload it, and compare.

    Args:
        quantized: codes, scales, the float tensors.
        teacher: folder of the float model, for config and tokenizer.
        format_name: a name of EXPORT_FORMATS.
        out: an existing folder.
        needs: what this format alone needs; of qnn, `target`, see `qnn.folder.write`.

    Returns:
        Facts for the manifest: format, sizes, and the tensors that float16 does not hold; of a format that transformers
        loads, the largest difference of the logits, the dtype that the config names and what it costs, too. Bits a
        weight are those of the file by the teacher's count of weights, so that a head which is no longer the embedding
        counts as the size that it adds.

    Raises:
        ValueError: the format is unknown or does not hold the model, the teacher's tokenizer has ids that its embedding
            has no row for, or what was written does not read back as the same numbers.
    """
    chosen = look_up("export format", format_name, EXPORT_FORMATS)
    reference, tokenizer = saved.load_model(teacher), saved.load_tokenizer(teacher)
    soundness.check_tokenizer(reference, tokenizer)
    teacher_weights = stored_weights(teacher)
    chosen.write(quantized, reference, Path(teacher), out, **needs)
    if chosen.loads:
        reference.generation_config.save_pretrained(out)
        tokenizer.save_pretrained(out)
    write_json(out / SIGNALS, {part: quantized.scheme_json()[part] for part in ("inputs", "kv_cache")})

    chosen.check(quantized, reference, out)
    loaded = _as_loaded(chosen, quantized, reference, out) if chosen.loads else {}
    quantized_weights = sum(codes.numel() for codes in quantized.codes.values())
    quantized_bits = sum(_bits(codes, quantized.steps[n], quantized.schemes[n]) for n, codes in quantized.codes.items())
    weight_bytes = stored_bytes(out)
    return {
        "format": format_name,
        "weight_bytes": weight_bytes,
        "teacher_weights": teacher_weights,
        "bits_per_weight": 8 * weight_bytes / teacher_weights,
        "bits_per_quantized_weight": quantized_bits / quantized_weights,
        "wider_than_float16": _wide(quantized, {name for name, _ in reference.named_parameters()}),
        **loaded,
    }


def _as_loaded(chosen: Format, quantized: QuantizedModel, reference: PreTrainedModel, out: Path) -> dict[str, Any]:
    """What comes of an export that transformers loads, beside the float model with the quantized one's numbers."""
    quantized.put_into(reference)()
    tokens = probe_tokens(reference)
    difference = _read_back(reference, saved.load_model(out), quantized, tokens)
    in_dtype = choose_dtype(reference, out, tokens) if chosen.packed else EXACT
    return {"logits_difference": difference, "positions": tokens.numel(), **in_dtype}


def _read_back(reference: PreTrainedModel, loaded: PreTrainedModel, quantized: QuantizedModel, tokens: Tensor) -> float:
    """The largest difference of the logits, after the whole state was compared; raises ValueError if either differs."""
    with torch.no_grad():
        loaded(input_ids=tokens[:1], use_cache=False)  # unpacks
    check_state(reference, loaded, quantized)
    return same_logits(reference, loaded, tokens)


def _wide(quantized: QuantizedModel, parameters: set[str]) -> dict[str, str]:
    """Parameters and scales that are stored in more than float16, since that does not hold them, with their dtype."""
    stored = {f"{name}.weight_scale": stored_dtype(step.scale) for name, step in quantized.steps.items()}
    stored |= {name: values.dtype for name, values in quantized.floats.items() if name in parameters}
    return {name: str(dtype).removeprefix("torch.") for name, dtype in stored.items() if dtype != torch.float16}


def _bits(codes: Tensor, step: Step, scheme: Weights) -> int:
    """Bits of a quantized weight: its codes, its scales, and its zero points where it has any."""
    scale = 8 * stored_dtype(step.scale).itemsize
    return codes.numel() * scheme.bits + step.scale.numel() * (scale if scheme.symmetric else scale + scheme.bits)


def load_exported(folder: str | Path, dtype: str) -> PreTrainedModel:
    """An exported model as transformers loads it, unpacked, its inputs and KV cache quantized as the export says.

    What is unpacked by a first forward in inference mode could not be written to any more, as tying weights does.
    """
    model = saved.load_model(folder, dtype)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False)
    stored = read_json(Path(folder) / SIGNALS)
    quantize_signals(model, from_json(stored["inputs"]), KVCache(**stored["kv_cache"]))
    return model
