"""Export a quantized model to a folder that others load, and prove that it holds the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import models
from pipeline.artifacts import write_json
from pipeline.export import compressed_tensors
from pipeline.names import look_up
from pipeline.quant.model import QuantizedModel

ACTIVATION_SCALES = "activation_scales.json"
LOGITS_TOLERANCE = 1e-3  # of the largest logit: what another order of float32 sums may change


class Format(NamedTuple):
    """How a format is written, and how its codes and scales are read back from the file."""

    write: Callable[[QuantizedModel, str | Path, list[str], Path], None]
    read: Callable[[Path, int], tuple[dict[str, Tensor], dict[str, Tensor]]]


EXPORT_FORMATS = {"compressed-tensors": Format(compressed_tensors.write, compressed_tensors.read)}


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
    chosen.write(quantized, teacher, [name for name in linears if name not in quantized.codes], out)
    reference.generation_config.save_pretrained(out)
    models.load_tokenizer(teacher).save_pretrained(out)
    scales = {name: float(scale) for name, scale in quantized.activation_scales.items()}
    write_json(out / ACTIVATION_SCALES, {"bits": quantized.activation_bits, "symmetric": True, "scales": scales})

    same_numbers(quantized, *chosen.read(out, quantized.weight_bits))
    quantized.put_into(reference)()
    difference = same_logits(reference, models.load_model(out), quantized)
    quantized_weights = sum(codes.numel() for codes in quantized.codes.values())
    quantized_bits = quantized_weights * quantized.weight_bits + 16 * sum(s.numel() for s in quantized.scales.values())
    total_weights = quantized_weights + sum(values.numel() for values in quantized.floats.values())
    weight_bytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return {
        "format": format_name,
        "weight_bytes": weight_bytes,
        "bits_per_weight": 8 * weight_bytes / total_weights,
        "bits_per_quantized_weight": quantized_bits / quantized_weights,
        "logits_difference": difference,
    }


def same_numbers(quantized: QuantizedModel, codes: dict[str, Tensor], scales: dict[str, Tensor]) -> None:
    """Raises:
    ValueError: codes or scales differ in any bit from the quantized model's; names the linears.
    """
    if codes.keys() != quantized.codes.keys():
        raise ValueError(f"the export holds other linears: {sorted(codes.keys() ^ quantized.codes.keys())[:8]}")
    wrong = [
        name
        for name in codes
        if not torch.equal(codes[name], quantized.codes[name]) or not torch.equal(scales[name], quantized.scales[name])
    ]
    if wrong:
        raise ValueError(f"codes or scales read back from the export differ in {len(wrong)} linears: {wrong[:8]}")


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
