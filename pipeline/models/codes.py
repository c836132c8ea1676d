"""From the codes and scales of a checkpoint to the float32 weights that they stand for, one reader a format.

A reader is asked for every tensor of a checkpoint. It gives the name and the values that stand in its place: a weight
for its codes, nothing for scales and the like, all else as it is. Quantized inputs, outputs and KV caches are left in
float: a teacher is what its weights say. Products are worked out in float32, whatever the dtype of the scale.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.utils.match import match_targets
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
NOT_OF_WEIGHTS = (  # scales of inputs, outputs and the KV cache, which stay in float
    "activation_scale", "input_scale", "input_scale_ub", "input_zero_point", "input_global_scale",
    "output_scale", "output_zero_point", "q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point",
)  # fmt: skip


class Tensors:
    """The tensors of a checkpoint of one or several parts, read when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.parts = {file: safe_open(file, framework="pt") for file in files}
        self.at = {name: part for part in self.parts.values() for name in part.keys()}  # noqa: SIM118
        self.modules: dict[str, list[str]] = {}
        for name in self.at:
            module, _, part = name.rpartition(".")
            self.modules.setdefault(module, []).append(part)

    def __contains__(self, name: str) -> bool:
        return name in self.at

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.at:
            raise ValueError(f"it lacks {name}")
        return self.at[name].get_tensor(name)

    def dtype(self, name: str) -> str:
        """As the file calls it: BF16, F8_E4M3, I32, ..."""
        return self.at[name].get_slice(name).get_dtype()

    def within(self, module: str) -> list[str]:
        """The last parts of the names of a module's own tensors."""
        return self.modules.get(module, [])


Read = Callable[[str], tuple[str, Tensor] | None]


def float8(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """FP8 weights, multiplied by a scale a tensor, an output row, or a block (weight_block_size: rows, columns).

    The scale of x is x_scale_inv (DeepSeek's name for it) or x_scale.
    """
    block = said.get("weight_block_size")

    def read(name: str) -> tuple[str, Tensor] | None:
        coded = name.removesuffix("_inv").removesuffix("_scale")
        if coded != name and coded in tensors:
            if tensors.dtype(coded) not in FLOAT8:
                raise ValueError(f"{name} is the scale of a weight that is stored as {tensors.dtype(coded)}")
            return None
        if name.rpartition(".")[2] in NOT_OF_WEIGHTS:
            return None
        if tensors.dtype(name) not in FLOAT8:
            return name, tensors[name]
        scales = [f"{name}{end}" for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors]
        if len(scales) != 1:
            raise ValueError(f"{name} is stored as {tensors.dtype(name)} and has {len(scales)} scales, not one")
        return name, tensors[name].float() * spread(tensors[scales[0]].float(), tensors[name].shape, block, scales[0])

    return read


def spread(scale: Tensor, shape: torch.Size, block: list[int] | None, name: str) -> Tensor:
    """A scale that multiplies a weight [..., rows, columns]: one, one a row, or one a block, the last ones perhaps cut.

    Raises:
        ValueError: it is none of these.
    """
    if scale.numel() == 1:
        return scale.reshape(())
    rows, columns = shape[-2:]
    if scale.shape in ((rows,), (*shape[:-1], 1)):
        return scale.reshape(*shape[:-1], 1)
    if block and scale.shape == (*shape[:-2], -(-rows // block[0]), -(-columns // block[1])):
        wide = scale.repeat_interleave(block[0], dim=-2).repeat_interleave(block[1], dim=-1)
        return wide[..., :rows, :columns]
    raise ValueError(f"{name} {[*scale.shape]} does not scale a weight {[*shape]} in blocks of {block}")


def nvfp4(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """ModelOpt's NVFP4: FP4 codes, two a byte; weight = code x weight_scale (a group of 16) x weight_scale_2."""
    group = int(said.get("group_size") or 16)

    def read(name: str) -> tuple[str, Tensor] | None:
        module, _, part = name.rpartition(".")
        if part in NOT_OF_WEIGHTS:
            return None
        weight = f"{module}.weight"
        coded = weight in tensors and tensors.dtype(weight) == "U8"
        if part in ("weight_scale", "weight_scale_2") and coded:
            return None
        if part != "weight" or not coded:
            return name, tensors[name]
        packed, scale = tensors[name], tensors[f"{name}_scale"].float() * tensors[f"{name}_scale_2"].float()
        codes = unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], dtype=torch.float32)
        return name, codes * scale.repeat_interleave(group, dim=1)

    return read


def modelopt(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """ModelOpt's checkpoints, by their quant_algo.

    Raises:
        ValueError: it is none of FP8 and NVFP4.
    """
    algorithm = str(said.get("quant_algo") or "none")
    if algorithm not in ("FP8", "NVFP4"):
        raise ValueError(f"ModelOpt's quant_algo {algorithm!r} cannot be dequantized here, FP8 and NVFP4 can")
    return (float8 if algorithm == "FP8" else nvfp4)(tensors, {**said, "weight_block_size": None}, folder)


def awq(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """AutoAWQ's gemm layout: 4 bits, packed along the outputs in its own order; weight = (code - zero) x scale."""
    bits, version = said.get("bits", said.get("w_bit", 4)), str(said.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise ValueError(f"AWQ of {bits} bits in the layout {version!r} cannot be dequantized here, 4 bits in gemm can")

    def read(name: str) -> tuple[str, Tensor] | None:
        module, _, part = name.rpartition(".")
        if part in ("qzeros", "scales") and f"{module}.qweight" in tensors:
            return None
        if part != "qweight":
            return name, tensors[name]
        zeros = tensors[f"{module}.qzeros"] if "qzeros" in tensors.within(module) else None
        unpacked = AutoAWQConverter.unpack_awq(tensors[name], zeros, bits)
        codes, zero = AutoAWQConverter.reverse_awq_order(*unpacked, bits)  # (in, out), (groups, out)
        scale = tensors[f"{module}.scales"].float()  # (groups, out)
        group = len(codes) // len(scale)
        middle = (zero & 15).float() if zero is not None else torch.full_like(scale, 8)
        weight = ((codes & 15).float() - middle.repeat_interleave(group, dim=0)) * scale.repeat_interleave(group, dim=0)
        return f"{module}.weight", weight.T

    return read


def compressed_tensors(tensors: Tensors, said: Mapping[str, Any], folder: Path) -> Read:
    """All formats of compressed-tensors that its own library decompresses, a scheme a group of modules.

    Raises:
        ValueError: weights are sparse, turned by a transform, or not compressed.
    """
    sparse, turned = said.get("sparsity_config") or {}, said.get("transform_config") or {}
    if sparse.get("format", "dense") != "dense" or turned.get("config_groups"):
        raise ValueError("compressed-tensors with a sparsity_config or a transform_config cannot be dequantized here")
    config = QuantizationConfig.model_validate(dict(said))
    if config.quantization_status != QuantizationStatus.COMPRESSED:
        raise ValueError(f"its quantization_status is {config.quantization_status.value!r}, not 'compressed'")
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    modules, linear = _modules(folder), nn.Linear(1, 1, device="meta")

    def read(name: str) -> tuple[str, Tensor] | None:
        module, _, part = name.rpartition(".")
        parts = tensors.within(module) if part.startswith("weight") else []
        coded = "weight_packed" in parts or "weight_scale" in parts
        if part in NOT_OF_WEIGHTS:
            return None
        if not coded:
            return name, tensors[name]
        if part not in ("weight", "weight_packed"):
            return None
        targets = match_targets(module, modules.get(module, linear), schemes)
        if not targets:
            raise ValueError(f"no config group of its quantization_config names {module}, which is quantized")
        scheme = schemes[targets[0]]
        layout = scheme.format or infer_module_format(type(modules.get(module, linear)), scheme)
        stored = {part: tensors[f"{module}.{part}"] for part in parts if part not in (*NOT_OF_WEIGHTS, "bias")}
        return f"{module}.weight", _decompressed(module, stored, scheme, str(getattr(layout, "value", layout)))

    return read


def _decompressed(module: str, stored: dict[str, Tensor], scheme: QuantizationScheme, layout: str) -> Tensor:
    """The float32 weight of a module's `stored` tensors, by their own names."""
    compressor = BaseCompressor.get_value_from_registry(layout)
    known = [part for part in compressor.compression_param_names(scheme) if part not in NOT_OF_WEIGHTS]
    if {*stored} ^ {*known}:
        raise ValueError(f"{module} has {sorted(stored)}, but {layout} needs {sorted(known)}")
    scale = stored["weight_scale"]
    if compressor is NVFP4PackedCompressor:
        packed = stored["weight_packed"]
        codes = unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], dtype=torch.float32)
        overall = stored["weight_global_scale"].float()
        return dequantize(codes, scale.float(), args=scheme.weights, global_scale=overall, dtype=torch.float32)
    if scale.is_floating_point():
        stored["weight_scale"] = scale.float()
    return compressor.decompress(stored, scheme)["weight"].float()


def _modules(folder: Path) -> dict[str, nn.Module]:
    """The modules of the folder's model by name, without their values: a scheme may be that of a class."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return dict(AutoModelForCausalLM.from_config(config, trust_remote_code=False).named_modules())
