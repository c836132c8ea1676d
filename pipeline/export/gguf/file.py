"""GGUF: one file that llama.cpp, and all that is built on it, runs.

Blocks hold the trained codes and scales, see `blocks`. What stays in float keeps its dtype, but for vectors
(norms, biases), which llama.cpp wants in float32. Inputs and KV cache are llama.cpp's own matter: it quantizes the
inputs of such weights to 8 bits, a scale a block of 32.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import dequantize
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.export.gguf import blocks, tokenizer
from pipeline.export.gguf import model as gguf_model
from pipeline.export.proof import others
from pipeline.models import saved
from pipeline.quant.model import QuantizedModel

WEIGHTS = "model.gguf"
FILE_TYPES = {
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}


def write(quantized: QuantizedModel, model: PreTrainedModel, teacher: Path, out: Path) -> None:
    """Write a quantized model, with the teacher's tokenizer.

    Args:
        model: the float model, which gives the config. teacher: its folder.

    Raises:
        ValueError: llama.cpp has no place for something of it.
    """
    quantized.untie(model)
    config = model.config
    tensors = _tensors(quantized, model)
    names = gguf_model.tensor_names(model, list(tensors))
    writer = GGUFWriter(out / WEIGHTS, MODEL_ARCH_NAMES[gguf_model.architecture(config).name])
    kinds = [blocks.kind_of(scheme.bits).type for scheme in quantized.schemes.values()]
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[max(set(kinds), key=kinds.count)])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    gguf_model.write_config(writer, config)
    tokenizer.write(writer, saved.load_tokenizer(teacher), teacher, config.vocab_size)
    for key, (values, kind) in tensors.items():
        writer.add_tensor(names[key], values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(quantized: QuantizedModel, model: PreTrainedModel) -> dict[str, tuple[np.ndarray, GGMLQuantizationType]]:
    """All of the model's tensors as they are stored, by their names in transformers."""
    tensors = {key: _float(gguf_model.in_order(model.config, key, values)) for key, values in quantized.floats.items()}
    for name, codes in quantized.codes.items():
        key = f"{name}.weight"
        codes = gguf_model.in_order(model.config, key, codes)
        scale = gguf_model.in_order(model.config, key, quantized.steps[name].scale)
        try:
            tensors[key] = blocks.write(codes, scale, quantized.schemes[name].bits)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return tensors


def _float(values: Tensor) -> tuple[np.ndarray, GGMLQuantizationType]:
    if values.ndim == 1 or values.dtype == torch.float32:
        return values.float().numpy(), GGMLQuantizationType.F32
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint8), GGMLQuantizationType.BF16
    return values.numpy(), GGMLQuantizationType.F16


def check(quantized: QuantizedModel, model: PreTrainedModel, folder: Path) -> None:
    """Read the file with gguf's own reader, and compare what its blocks stand for with codes times scales.

    Raises:
        ValueError: tensors are missing, foreign, or not those that were quantized, bit for bit; names them.
    """
    expected = dict(quantized.floats) | {f"{name}.weight": quantized.weight(name) for name in quantized.codes}
    names = gguf_model.tensor_names(model, list(expected))
    stored = {tensor.name: tensor for tensor in GGUFReader(folder / WEIGHTS).tensors}
    missing = [name for name in names.values() if name not in stored]
    foreign = sorted({*stored} - {*names.values(), gguf_model.FREQUENCIES})
    problems = {"lacks": missing, "holds, which are none of the model's,": foreign}
    told = [f"{what} {tensors[:8]}" for what, tensors in problems.items() if tensors]
    if told:
        raise ValueError(f"the file {' and '.join(told)}")
    wrong = {}
    for key, values in expected.items():
        tensor = stored[names[key]]
        theirs = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        ours = gguf_model.in_order(model.config, key, values).float()
        if theirs.numel() != ours.numel() or not torch.equal(theirs.view(ours.shape), ours):
            wrong[key] = theirs, ours
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors read back from the file are not those that were written: {others(wrong)}"
        )
