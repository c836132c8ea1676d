"""Export a quantized model to a folder that others load, and prove that it holds the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import models
from pipeline.artifacts import read_json, write_json
from pipeline.export import compressed_tensors, dequantized
from pipeline.names import look_up
from pipeline.quant.activations import from_json
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel, quantize_signals
from pipeline.scheme import KVCache, Weights

SIGNALS = "activations.json"  # how inputs and KV cache are quantized
LOGITS_TOLERANCE = 1e-3  # of the largest logit: what another order of float32 sums may change


class Format(NamedTuple):
    """How a format is written, and how what is packed in the file is compared with the quantized model."""

    write: Callable[[QuantizedModel, PreTrainedModel, list[str], Path], None]
    check: Callable[[QuantizedModel, Path], None]


EXPORT_FORMATS = {
    "compressed-tensors": Format(compressed_tensors.write, compressed_tensors.check),
    "dequantized": Format(dequantized.write, dequantized.check),
}


def export(quantized: QuantizedModel, teacher: str | Path, format_name: str, out: Path) -> dict[str, Any]:
    """Write a quantized model into `out`, reload it, and compare.

    Args:
        quantized: codes, scales, the float tensors.
        teacher: folder of the float model, for config and tokenizer.
        format_name: a name of EXPORT_FORMATS.
        out: an existing folder.

    Returns:
        Facts for the manifest: format, sizes, and the largest difference of the logits.

    Raises:
        ValueError: the format is unknown, or what was written does not read back as the same numbers.
    """
    chosen = look_up("export format", format_name, EXPORT_FORMATS)
    reference = models.load_model(teacher)
    linears = [name for name, module in reference.named_modules() if isinstance(module, nn.Linear)]
    chosen.write(quantized, reference, [name for name in linears if name not in quantized.codes], out)
    reference.generation_config.save_pretrained(out)
    models.load_tokenizer(teacher).save_pretrained(out)
    write_json(out / SIGNALS, {part: quantized.scheme_json()[part] for part in ("inputs", "kv_cache")})

    chosen.check(quantized, out)
    quantized.put_into(reference)()
    difference = same_logits(reference, models.load_model(out), quantized)
    quantized_weights = sum(codes.numel() for codes in quantized.codes.values())
    quantized_bits = sum(_bits(codes, quantized.steps[n], quantized.schemes[n]) for n, codes in quantized.codes.items())
    total_weights = quantized_weights + sum(values.numel() for values in quantized.floats.values())
    weight_bytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return {
        "format": format_name,
        "weight_bytes": weight_bytes,
        "bits_per_weight": 8 * weight_bytes / total_weights,
        "bits_per_quantized_weight": quantized_bits / quantized_weights,
        "logits_difference": difference,
    }


def _bits(codes: Tensor, step: Step, scheme: Weights) -> int:
    """Bits of a quantized weight: its codes, its float16 scales, and its zero points where it has any."""
    return codes.numel() * scheme.bits + step.scale.numel() * (16 if scheme.symmetric else 16 + scheme.bits)


def load_exported(folder: str | Path, dtype: str) -> PreTrainedModel:
    """An exported model as transformers loads it, its inputs and KV cache quantized as the export says."""
    model = models.load_model(folder, dtype)
    stored = read_json(Path(folder) / SIGNALS)
    quantize_signals(model, from_json(stored["inputs"]), KVCache(**stored["kv_cache"]))
    return model


@torch.no_grad()
def same_logits(reference: PreTrainedModel, loaded: PreTrainedModel, quantized: QuantizedModel) -> float:
    """Largest difference of the logits of some tokens, as a share of the largest logit.

    Raises:
        ValueError: it exceeds LOGITS_TOLERANCE, or a reloaded weight is not exactly its code times its scale.
    """
    tokens = torch.randint(
        reference.get_input_embeddings().weight.shape[0], (2, 32), generator=torch.Generator().manual_seed(0)
    )
    ours, theirs = reference(input_ids=tokens).logits, loaded(input_ids=tokens).logits
    wrong = [n for n in quantized.codes if not torch.equal(loaded.get_submodule(n).weight, quantized.weight(n))]
    if wrong:
        raise ValueError(f"the reloaded weights are not codes times scales in {len(wrong)} linears: {wrong[:8]}")
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference <= LOGITS_TOLERANCE:
        raise ValueError(
            f"the reloaded model's logits differ by {difference:.2e} of the largest, over {LOGITS_TOLERANCE}"
        )
    return difference
