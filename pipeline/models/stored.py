"""How a checkpoint stores its weights: in float, or in fewer bits, which are dequantized or refused.

transformers keeps such weights in codes where a device can compute with them, asks for libraries that are not here, or
loads the codes as if they were weights where config.json does not tell of them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pipeline.models import codes, packed
from pipeline.models.codes import FLOAT8, Read, Tensors
from pipeline.models.loading import INDEX, WEIGHTS, some, weight_files

READERS: dict[str, Callable[[Tensors, Mapping[str, Any], Path], Read]] = {
    "fp8": codes.float8,
    "fbgemm_fp8": codes.float8,
    "compressed-tensors": codes.compressed_tensors,
    "awq": codes.awq,
    "gptq": packed.gptq,
    "auto-round": packed.auto_round,
    "bitsandbytes": packed.bitsandbytes,
    "modelopt": codes.modelopt,
}
SIDE_FILE = "hf_quant_config.json"  # where ModelOpt says what config.json does not
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OF_WEIGHTS = ("weight", "proj", "packed", "blocks", "experts")  # what the names of integers that are codes have


def in_float(folder: Path, scratch: Path) -> tuple[Path, str]:
    """A folder with the same model, its weights in float: the folder itself, or one that is written into `scratch`.

    Returns:
        the folder, and how the weights were stored, for the manifest.

    Raises:
        ValueError: they are codes that cannot be dequantized here, or nothing says what they stand for.
    """
    files = weight_files(folder)
    tensors = Tensors(files)
    said = quantization(folder)
    if said is None:
        check_no_codes(tensors, "and its config.json has no quantization_config, which says what they stand for")
        dtypes = {tensors.dtype(name) for name in tensors.at}
        return folder, ", ".join(sorted(DTYPES[dtype] for dtype in dtypes if dtype in DTYPES))
    method = str(said["quant_method"])
    if method not in READERS:
        raise ValueError(
            f"its weights are stored by {method!r}, which cannot be dequantized here ({', '.join(READERS)} can); take "
            "the model that it was made of, or dequantize it with that library and save it in float"
        )
    read = READERS[method](tensors, said, folder)
    if not _write(tensors, read, scratch):
        raise ValueError(f"its quantization_config says {method!r}, but no tensor is stored so; the two do not belong")
    _write_config(folder, scratch)
    check_no_codes(Tensors(weight_files(scratch)), f"which {method!r} does not scale")
    return scratch, f"{method}{_kind(said)}, dequantized"


def quantization(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of its quantization, with its quant_method; None where it says nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for place in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            said = place.get(key)
            if said:
                return {**said, "quant_method": _method(said) if key == "quantization_config" else key}
    side = folder / SIDE_FILE
    if side.is_file():
        said = json.loads(side.read_text(encoding="utf-8")).get("quantization") or {}
        return {**said, "quant_method": "modelopt"} if said.get("quant_algo") else None
    return None


def check_no_codes(tensors: Tensors, why: str) -> None:
    """Raises:
    ValueError: tensors are stored in 8 bits or fewer, or integers have names of weights.
    """
    bad = []
    for name in sorted(tensors.at):
        dtype, ending = tensors.dtype(name), ".".join(name.split(".")[-2:])
        if dtype.startswith(("F8", "F6", "F4")) or (dtype[0] in "IU" and any(part in ending for part in OF_WEIGHTS)):
            bad.append(f"{name} ({dtype})")
    if bad:
        raise ValueError(f"its tensors hold codes, {some(bad)}, {why}; take the model that it was made of")


def _method(said: Mapping[str, Any]) -> str:
    method = str(said.get("quant_method") or "")
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "bitsandbytes"
    if method.startswith("modelopt") or (not method and said.get("quant_algo")):
        return "modelopt"
    return method or "a quantization_config without a quant_method"


def _kind(said: Mapping[str, Any]) -> str:
    """The layout within a method, where it has several."""
    kind = said.get("quant_algo") or said.get("format") or said.get("version") or said.get("fmt")
    return f" ({kind})" if kind else ""


def _write(tensors: Tensors, read: Read, scratch: Path) -> int:
    """Write each part anew, its codes dequantized; returns how many weights were codes."""
    scratch.mkdir(parents=True, exist_ok=True)
    held: dict[str, str] = {}
    coded = 0
    for file, part in tensors.parts.items():
        there = {}
        for name in part.keys():  # noqa: SIM118
            renamed = read(name)
            if renamed is not None:
                new_name, weight = renamed
                there[new_name] = weight.contiguous()
                coded += new_name != name or tensors.dtype(name) in (*FLOAT8, "I8", "U8")
        save_file(there, scratch / file.name, metadata={"format": "pt"})
        held |= dict.fromkeys(there, file.name)
    if [file.name for file in tensors.parts] != [WEIGHTS]:
        (scratch / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": held}))
    return coded


def _write_config(folder: Path, scratch: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for place in (config, config.get("text_config") or {}):
        place.pop("quantization_config", None)
    (scratch / "config.json").write_text(json.dumps(config))
    if (folder / "generation_config.json").is_file():
        shutil.copy(folder / "generation_config.json", scratch)
