"""A plain float32 model whose weights are what the codes stand for: no smaller, but it holds every scheme.

It is for measuring what no packed format that transformers reads can hold, asymmetric weights above all.
"""

from pathlib import Path

from transformers import PreTrainedModel

from pipeline.quant.model import QuantizedModel


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path) -> None:
    """Write config and weights of a quantized model, whose numbers the float `model` gets."""
    quantized.put_into(model)()
    model.save_pretrained(out)


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Nothing is packed; the export's comparison of the reloaded weights says it all."""
