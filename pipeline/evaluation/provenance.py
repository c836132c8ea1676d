"""What scores were read from: hashes and revisions, so that scores of different texts are never set against each other.

They lie beside the scores in their file, under `read`, flat, from a name to a hash or a revision:
teacher (its manifest), text (all of it), windows (the tokens that were scored), held_out (the corpus's tokens of it),
benchmark.{task} (the file's sha256, or the hub's data set with its revision), items.{task} (what was asked).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.contract import sha256

READ = "read"  # its name among the scores
HUB = re.compile(r"hf://datasets/([^@]+@[0-9a-f]{7,40})/")  # of a file of a data set, with its revision


def of_tokens(*arrays: np.ndarray) -> str:
    """sha256 of the shapes, dtypes and content of token ids and the like."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def of_benchmark(file: Path | None, splits: Mapping[str, Any]) -> str:
    """The sha256 of a task's file; of the hub's data set, without one, the revision of its files.

    Args:
        splits: the data set as lm-eval has it loaded, split by split; where it does not say from which revision its
            files are, the fingerprints that the data sets library gave it stand for that.
    """
    if file is not None:
        return sha256(file)
    files = [file for split in splits.values() for file in split.info.download_checksums or ()]
    revisions = sorted({match[1] for file in files if (match := HUB.match(file))})
    return ", ".join(revisions or [f"{name}: {split._fingerprint}" for name, split in sorted(splits.items())])


def of_items(samples: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over what lm-eval asked: each item's content, prompt and answer, in their order."""
    rows = [[sample[f"{part}_hash"] for part in ("doc", "prompt", "target")] for sample in samples]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def mixed(read: Mapping[str, Mapping[str, str] | None], variants: Sequence[str]) -> list[str]:
    """What scores of several variants were not read alike, a line each; empty where they can be set side by side.

    Args:
        read: of each variant what its scores say; None where they say nothing. variants: whose are to be compared.
    """
    silent = [variant for variant in variants if read[variant] is None]
    if silent:
        spoken = [variant for variant in variants if variant not in silent]
        return [f"the scores of {', '.join(silent)} do not say what they were read from"] if spoken else []
    problems = []
    for name in dict.fromkeys(name for variant in variants for name in read[variant] or ()):
        values = {variant: (read[variant] or {}).get(name, "nothing") for variant in variants}
        if len({*values.values()}) > 1:
            problems.append(f"{name} is " + ", ".join(f"{value} for {variant}" for variant, value in values.items()))
    return problems
