"""The packed layout against a loop over bits, and against the library that defines it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from torch import Tensor

from pipeline.export import compressed_tensors
from pipeline.quant.model import QuantizedModel

Q = "model.layers.0.self_attn.q_proj"


def packed_bit_by_bit(codes: Tensor, bits: int) -> np.ndarray:
    """int32 [out, ceil(in * bits / 32)]: code + 2^(bits-1), low bits first, padded with zeros."""
    rows = []
    for row in codes.tolist():
        stream = [((code + 2 ** (bits - 1)) >> bit) & 1 for code in row for bit in range(bits)]
        stream += [0] * (-len(stream) % 32)
        words = [sum(bit << i for i, bit in enumerate(stream[at : at + 32])) for at in range(0, len(stream), 32)]
        rows.append(words)
    return np.array(rows, dtype=np.uint32).view(np.int32)


def random_model(bits: int, columns: int) -> QuantizedModel:
    """One linear of every possible code, and one float tensor."""
    generator = torch.Generator().manual_seed(columns)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, columns), generator=generator).to(torch.int8)
    codes[0, 0], codes[0, 1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = torch.rand(5, 1, generator=generator).half().float()
    return QuantizedModel(bits, 0, {Q: codes}, {Q: scale}, {}, {"model.norm.weight": torch.arange(7).half()})


@pytest.mark.parametrize("columns", [8, 32, 40, 64, 3])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_packed_as_a_loop_over_their_bits_packs_them(teacher_folder, tmp_path: Path, bits: int, columns: int):
    model = random_model(bits, columns)
    compressed_tensors.write(model, teacher_folder, ["lm_head"], tmp_path)
    stored = load_file(tmp_path / compressed_tensors.WEIGHTS)
    assert stored[f"{Q}.weight_packed"].dtype == torch.int32
    assert np.array_equal(stored[f"{Q}.weight_packed"].numpy(), packed_bit_by_bit(model.codes[Q], bits))
    assert stored[f"{Q}.weight_shape"].tolist() == [5, columns]
    assert stored[f"{Q}.weight_scale"].dtype == torch.float16
    assert torch.equal(stored[f"{Q}.weight_scale"].float(), model.scales[Q])
    assert torch.equal(stored["model.norm.weight"], model.floats["model.norm.weight"])
    assert len(stored) == 4


@pytest.mark.parametrize("columns", [8, 40, 3])
@pytest.mark.parametrize("bits", [4, 8])
def test_reading_undoes_writing_bit_for_bit(teacher_folder, tmp_path: Path, bits: int, columns: int):
    model = random_model(bits, columns)
    compressed_tensors.write(model, teacher_folder, [], tmp_path)
    codes, scales = compressed_tensors.read(tmp_path, bits)
    assert codes.keys() == scales.keys() == {Q}
    assert codes[Q].dtype == torch.int8
    assert torch.equal(codes[Q], model.codes[Q])
    assert torch.equal(scales[Q], model.scales[Q])


@pytest.mark.parametrize("bits", [4, 8])
def test_the_config_is_one_that_the_library_understands(teacher_folder, tmp_path: Path, bits: int):
    compressed_tensors.write(random_model(bits, 8), teacher_folder, ["lm_head"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("float16", ["LlamaForCausalLM"])
    described = dict(config["quantization_config"])
    assert described.pop("quant_method") == "compressed-tensors"
    parsed = QuantizationConfig.model_validate(described)
    (group,) = parsed.config_groups.values()
    assert (group.weights.num_bits, group.weights.strategy, group.weights.symmetric) == (bits, "channel", True)
    assert (group.targets, group.input_activations, parsed.ignore) == (["Linear"], None, ["lm_head"])
    assert parsed.format == "pack-quantized"


def test_the_same_model_gives_the_same_bytes(teacher_folder, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        compressed_tensors.write(random_model(4, 8), teacher_folder, [], tmp_path / name)
    for file in ("config.json", compressed_tensors.WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "config.json").read_text()
    assert str(teacher_folder) not in (tmp_path / "a" / "config.json").read_text()
