"""Scores as they are written, and as they follow from the answers, documents and files that they are scores of."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors import safe_open

from pipeline import artifacts
from pipeline.bench.items import Items
from pipeline.bench.provenance import READ

FLOAT_BITS = 32.0  # of a weight that is not quantized, as evaluate counts it
SIZES = ("bits_per_weight", "bits_per_quantized_weight")  # what the export says of its own file


def read(content: bytes | None) -> dict[str, float] | None:
    """Numbers by their names, as JSON; None where there is no such thing. What scores were read from is left out."""
    try:
        found = json.loads(content or b"")
    except ValueError:
        return None
    if isinstance(found, dict):
        found.pop(READ, None)
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        return None
    try:
        return {name: float(value) for name, value in found.items()}
    except OverflowError:
        return None


def of_items(items: Items) -> dict[str, float]:
    """The scores that a variant's answers and documents come to, with their standard errors.

    The standard error of a mean is the sample's standard deviation over the root of its size, as lm-eval's is; of one
    item there is none.
    """
    found: dict[str, float] = {}
    for measure, part in items.documents.groupby("measure"):
        found[str(measure)], found[f"{measure}.stderr"] = _mean(part["value"].to_numpy())
    if "log_perplexity" in found:
        found["perplexity"] = math.exp(found["log_perplexity"])
        found["perplexity.stderr"] = found["perplexity"] * found.pop("log_perplexity.stderr")
    tasks = {str(task): _mean(part["correct"].to_numpy(float)) for task, part in items.answers.groupby("task")}
    for task, (mean, error) in tasks.items():
        found[f"accuracy.{task}"], found[f"accuracy.{task}.stderr"] = mean, error
    if tasks:
        found["accuracy"] = sum(mean for mean, _ in tasks.values()) / len(tasks)
        found["accuracy.stderr"] = math.sqrt(sum(error**2 for _, error in tasks.values())) / len(tasks)
    return found


def of_model(folder: Path) -> dict[str, float]:
    """The sizes of a model's file: what its manifest says of it, or what its tensors come to.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: there is no such model, or it is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    facts = artifacts.read_json(folder / artifacts.MANIFEST)["facts"]
    stored = float(sum(file.stat().st_size for file in files))
    if all(name in facts for name in SIZES):
        return {"weight_bytes": stored, **{name: float(facts[name]) for name in SIZES}}
    count = 0
    for file in files:
        with safe_open(file, "np") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    if not count:
        raise ValueError(f"{folder} holds no weights")
    return {"weight_bytes": stored, SIZES[0]: 8 * stored / count, SIZES[1]: FLOAT_BITS}


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean of some values and its standard error."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error
