"""Scores as they are written, and as they follow from the answers, documents and files that they are scores of."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors import safe_open

from pipeline.artifacts import contract
from pipeline.evaluation import detail, generated
from pipeline.evaluation.items import Items
from pipeline.evaluation.provenance import READ
from pipeline.evaluation.scores import of_answers
from pipeline.export.sizes import stored_bytes, stored_weights

SCALE_BITS = {"F16": 16, "BF16": 16, "F32": 32}  # by safetensors' names
FLOAT_BITS = 32.0  # of a weight that is not quantized, as evaluate counts it
SIZES = ("bits_per_weight", "bits_per_quantized_weight")
SCALE = ".weight_scale"  # in compressed-tensors of each quantized weight, and of a head that shares the embedding's
PACKED, SHAPE, BYTES = ".weight_packed", ".weight_shape", ".weight"  # either the first two, or codes a byte each


def read(content: bytes | None) -> dict[str, float] | None:
    """Numbers by their names, as JSON; None where there is no such thing. What scores were read from is left out."""
    try:
        numbers = json.loads(content or b"")
    except ValueError:
        return None
    if isinstance(numbers, dict):
        numbers.pop(READ, None)
    if not isinstance(numbers, dict) or not all(type(value) in (int, float) for value in numbers.values()):
        return None
    try:
        return {name: float(value) for name, value in numbers.items()}
    except OverflowError:
        return None


def of_items(items: Items) -> dict[str, float]:
    """The scores that a variant's answers, documents and tokens come to, with their standard errors.

    The standard error of a mean over documents is the sample's standard deviation over the root of its size; of one
    there is none. Those of answers are as evaluate has them.
    """
    scores = detail.scores(items.tokens) | generated.of_written(items.written)
    for measure, part in items.documents.groupby("measure"):
        scores[str(measure)], scores[f"{measure}.stderr"] = _mean(part["value"].to_numpy())
    if "log_perplexity" in scores:
        scores["perplexity"] = math.exp(scores["log_perplexity"])
        scores["perplexity.stderr"] = scores["perplexity"] * scores.pop("log_perplexity.stderr")
    return scores | of_answers(items.answers)


def of_model(folder: Path, teacher: Path) -> dict[str, float]:
    """The sizes of a model's files, measured: bytes, bits of them by a weight of the teacher, and, of weights that are
    stored as codes, bits of codes and scales by one of these. What the manifest says of sizes is not read.

    Of an export without codes the last is left out: its files do not tell of it.

    Args:
        folder: of the model. teacher: of the teacher, by whose weights it is counted; the same where that was scored.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: there is no such model, or it is damaged.
    """
    stored = float(stored_bytes(folder))
    sizes = {"weight_bytes": stored, SIZES[0]: 8 * stored / stored_weights(teacher)}
    if folder == teacher:
        return {**sizes, SIZES[1]: FLOAT_BITS}
    bits = _packed_bits(folder)
    return sizes if bits is None else {**sizes, SIZES[1]: bits}


def _packed_bits(folder: Path) -> float | None:
    """Bits of codes and scales by a quantized weight; None where none is stored as codes."""
    section = contract.read_json(folder / "config.json").get("quantization_config")
    if section is None:
        return None
    bits_of = {target: g["weights"]["num_bits"] for g in section["config_groups"].values() for target in g["targets"]}
    bits = weights = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            keys = set(tensors.keys())
            for name in (key.removesuffix(SCALE) for key in keys if key.endswith(SCALE)):
                if name + PACKED in keys:
                    count = int(tensors.get_tensor(name + SHAPE).prod())
                elif name + BYTES in keys:
                    count = math.prod(tensors.get_slice(name + BYTES).get_shape())
                else:
                    continue  # the embedding's scales once more
                scale = tensors.get_slice(name + SCALE)
                width = SCALE_BITS[scale.get_dtype()]
                coded = bits_of[name if name in bits_of else "Linear"]
                bits += count * coded + math.prod(scale.get_shape()) * width
                weights += count
    if not weights:
        raise ValueError(f"{folder} holds no quantized weights")
    return bits / weights


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean of some values and its standard error."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error
