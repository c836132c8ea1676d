"""How large a model's files are, and how many weights a float model has by them."""

import math
from pathlib import Path

from safetensors import safe_open

KINDS = (
    "*.safetensors",
    "*.gguf",
    "*.onnx",
    "*.onnx.data",
    "*.bin",
    "*.pte",
)  # files that hold tensors, or what was compiled of them


def stored_bytes(folder: str | Path) -> int:
    """Bytes of the files that hold a model's tensors."""
    return sum(file.stat().st_size for kind in KINDS for file in Path(folder).glob(kind))


def stored_weights(folder: str | Path) -> int:
    """Values of all tensors that a float model's files hold: what bits a weight of any of its variants are counted by.

    Raises:
        ValueError: the folder holds none.
    """
    count = 0
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    if not count:
        raise ValueError(f"{folder} holds no weights")
    return count
