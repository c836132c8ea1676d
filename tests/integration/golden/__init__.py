"""What every stage made of a tiny model once, written down in made.json, and how it is compared with what it makes now.

knobs/, artifacts/ and preflight/ are no deps of any stage in dvc.yaml: what they decide must reach the numbers through
params and artifacts alone. So a change there must leave all of this as it is. It changes on purpose alone:

    python -m tests.integration.golden FOLDER      # writes it anew, from a run in a new folder
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

MADE = Path(__file__).with_name("made.json")
ARTIFACTS = (
    "teacher",
    "corpus",
    "calibration",
    "rtn",
    "signals",
    "targets",
    "student",
    "signals_student",
    "references",
)
VARIANTS = ("rtn", "ptq", "student")
SAMPLED = 24  # values of a float tensor or a column of numbers that are written down
CLOSE = {
    "tensor": 1e-5,
    "table": 1e-4,
}  # relative, and in root mean squares: processors sum in other orders, and some of
# the signals are small differences of sums
FLIPPED = 1e-3  # of the codes, which then may fall to the other side


def summary(data: Path) -> dict[str, Any]:
    """What lies in a `data` folder after a run: codes whole, floats and tables by some of their values."""
    folders = [*ARTIFACTS, *(f"int4/{variant}/compressed-tensors" for variant in VARIANTS)]
    entries = {}
    for folder in folders:
        for file in sorted((data / folder).glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                entries[f"{folder}/{file.name}:{name}"] = _of_tensor(tensor)
        for file in sorted((data / folder).glob("*.parquet")):
            entries |= dict(_of_table(f"{folder}/{file.name}", pd.read_parquet(file)))
    for file in sorted((data / "scores").glob("*.json")):
        scores = {name: value for name, value in json.loads(file.read_text()).items() if isinstance(value, float)}
        entries[f"scores/{file.name}"] = {"values": list(scores.values()), "rms": _rms([*scores.values()])}
    return entries


def differing(written: dict[str, Any], made: dict[str, Any]) -> Iterator[str]:
    """What is not as it was written down, a line each."""
    for name in sorted({*written, *made}):
        before, now = written.get(name), made.get(name)
        if before is None or now is None:
            yield f"{name}: {'new' if before is None else 'missing'}"
        elif before.keys() != now.keys() or before.get("shape") != now.get("shape"):
            yield f"{name}: {before.get('shape')} {before.get('dtype')} became {now.get('shape')} {now.get('dtype')}"
        elif "codes" in before:
            ours, theirs = (np.frombuffer(base64.b64decode(entry["codes"]), dtype=np.uint8) for entry in (now, before))
            share = float((_nibbles(ours) != _nibbles(theirs)).mean()) if ours.size == theirs.size else 1.0
            if share > FLIPPED:
                yield f"{name}: {share:.2%} of the codes are others"
        else:
            ours, theirs = np.array(now["values"]), np.array(before["values"])
            close = CLOSE["table" if before.get("dtype") == "table" else "tensor"]
            if not np.allclose(ours, theirs, close, close * before["rms"], equal_nan=True):
                yield f"{name}: off by up to {np.nanmax(np.abs(ours - theirs)):.3g}, of a size of {before['rms']:.3g}"


def _of_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    about = {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    if not tensor.is_floating_point():
        content = tensor.contiguous().view(-1).numpy().tobytes()
        return about | {"codes": base64.b64encode(content).decode()}
    return about | _some(tensor.double().flatten().numpy())


def _of_table(name: str, table: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    for column in table.select_dtypes("number"):
        values = table[column].to_numpy(dtype=float)
        yield f"{name}:{column}", {"shape": [len(values)], "dtype": "table", **_some(values)}


def _some(values: np.ndarray) -> dict[str, Any]:
    at = np.random.default_rng(0).choice(len(values), min(SAMPLED, len(values)), replace=False)
    return {"values": [float(f"{value:.9g}") for value in values[np.sort(at)]], "rms": _rms(values)}


def _rms(values: Any) -> float:
    return float(f"{np.sqrt(np.nanmean(np.square(np.asarray(values)))):.6g}") if len(values) else 0.0


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes of four bits, where they are packed; of others the halves of each byte."""
    return np.stack([codes >> 4, codes & 15])
