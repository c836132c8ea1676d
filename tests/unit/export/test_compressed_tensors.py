"""The packed layout against a loop over bits, and against the library that defines it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.export import compressed_tensors
from pipeline.knobs.scheme import Weights
from pipeline.models import saved
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel

Q = "model.layers.0.self_attn.q_proj"
HEAD = "lm_head"
all_bits = pytest.mark.parametrize("bits", range(2, 9))


@pytest.fixture
def teacher(teacher_folder: Path) -> PreTrainedModel:
    return saved.load_model(teacher_folder)


def packed_bit_by_bit(codes: Tensor, bits: int) -> np.ndarray:
    """int32 [out, ceil(in * bits / 32)]: code + 2^(bits-1), low bits first, padded with zeros."""
    rows = []
    for row in codes.tolist():
        stream = [((code + 2 ** (bits - 1)) >> bit) & 1 for code in row for bit in range(bits)]
        stream += [0] * (-len(stream) % 32)
        words = [sum(bit << i for i, bit in enumerate(stream[at : at + 32])) for at in range(0, len(stream), 32)]
        rows.append(words)
    return np.array(rows, dtype=np.uint32).view(np.int32)


def random_codes(bits: int, columns: int) -> Tensor:
    """int8 [5, columns], the least and the greatest code among them."""
    generator = torch.Generator().manual_seed(columns)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, columns), generator=generator).to(torch.int8)
    codes[0, 0], codes[0, 1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return codes


def random_model(schemes: dict[str, Weights], columns: int = 8) -> QuantizedModel:
    """A linear of every possible code for each scheme, and one float tensor."""
    model = QuantizedModel(schemes=schemes, floats={"model.norm.weight": torch.arange(7).half()})
    generator = torch.Generator().manual_seed(columns)
    for name, scheme in schemes.items():
        scale = torch.rand(5, columns // (scheme.group or columns), generator=generator).half().float()
        model.codes[name] = random_codes(scheme.bits, columns)
        model.steps[name] = Step(scale, torch.zeros_like(scale))
    return model


def one(bits: Any, columns: int = 8, group: int = 0) -> QuantizedModel:
    return random_model({Q: Weights(bits, group=group)}, columns)


@pytest.mark.parametrize(("columns", "group"), [(8, 0), (32, 0), (40, 8), (64, 32), (3, 0), (33, 11)])
@all_bits
def test_codes_are_packed_as_a_loop_over_their_bits_packs_them(
    teacher: PreTrainedModel, tmp_path: Path, bits: int, columns: int, group: int
):
    model = one(bits, columns, group)
    compressed_tensors.write(model, teacher, tmp_path, tmp_path)
    stored = load_file(tmp_path / compressed_tensors.WEIGHTS)
    assert stored[f"{Q}.weight_packed"].dtype == torch.int32
    assert np.array_equal(stored[f"{Q}.weight_packed"].numpy(), packed_bit_by_bit(model.codes[Q], bits))
    assert stored[f"{Q}.weight_shape"].tolist() == [5, columns]
    assert stored[f"{Q}.weight_scale"].dtype == torch.float16
    assert stored[f"{Q}.weight_scale"].shape == (5, columns // (group or columns))
    assert torch.equal(stored[f"{Q}.weight_scale"].float(), model.steps[Q].scale)
    assert torch.equal(stored["model.norm.weight"], model.floats["model.norm.weight"])
    assert len(stored) == 4
    compressed_tensors.check(model, teacher, tmp_path)


MIXED = {
    Q: Weights(4),
    "model.layers.0.mlp.up_proj": Weights(8),
    "model.layers.0.mlp.gate_proj": Weights(8),
    "model.layers.0.mlp.down_proj": Weights(3, group=8),
    HEAD: Weights(8, group=8),
}


def linears_without(model: PreTrainedModel, quantized: set[str]) -> list[str]:
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in linears if name not in quantized]


def described(folder: Path) -> tuple[dict[str, Any], QuantizationConfig]:
    """config.json, and what the library makes of its quantization section."""
    config = json.loads((folder / "config.json").read_text())
    section = dict(config["quantization_config"])
    assert section.pop("quant_method") == "compressed-tensors"
    return config, QuantizationConfig.model_validate(section)


@pytest.mark.parametrize("group", [0, 4], ids=["channel", "group"])
@all_bits
def test_the_config_is_one_that_the_library_understands(
    teacher: PreTrainedModel, tmp_path: Path, bits: int, group: int
):
    compressed_tensors.write(one(bits, 8, group), teacher, tmp_path, tmp_path)
    config, parsed = described(tmp_path)
    assert (config["dtype"], config["architectures"]) == ("float16", ["LlamaForCausalLM"])
    assert config["tie_word_embeddings"] is True
    (scheme,) = parsed.config_groups.values()
    assert (scheme.weights.num_bits, scheme.weights.symmetric, scheme.weights.dynamic) == (bits, True, False)
    assert (scheme.weights.strategy, scheme.weights.group_size) == (("group", 4) if group else ("channel", None))
    assert (scheme.targets, scheme.input_activations, parsed.ignore) == (
        ["Linear"],
        None,
        linears_without(teacher, {Q}),
    )
    assert (scheme.format, parsed.format, parsed.quantization_status) == (
        "pack-quantized",
        "pack-quantized",
        "compressed",
    )


def test_each_scheme_has_a_group_that_names_its_linears(teacher: PreTrainedModel, tmp_path: Path):
    compressed_tensors.write(random_model(MIXED), teacher, tmp_path, tmp_path)
    config, parsed = described(tmp_path)
    grids = {
        name: (group.weights.num_bits, group.weights.group_size)
        for group in parsed.config_groups.values()
        for name in group.targets
    }
    assert grids == {name: (scheme.bits, scheme.group or None) for name, scheme in MIXED.items()}
    assert len(parsed.config_groups) == 4
    assert parsed.ignore == linears_without(teacher, {*MIXED})
    assert config["tie_word_embeddings"] is False


def decompressed(folder: Path) -> dict[str, Tensor]:
    """The weights as compressed-tensors' own decompressor gives them, from the file and its config alone."""
    _, parsed = described(folder)
    tensors = load_file(folder / compressed_tensors.WEIGHTS)
    weights = {}
    for name in sorted({key.rsplit(".", 1)[0] for key in tensors if key.endswith("weight_packed")}):
        (scheme,) = [g for g in parsed.config_groups.values() if name in g.targets or g.targets == ["Linear"]]
        assert isinstance(scheme, QuantizationScheme)
        own = {key.rsplit(".", 1)[1]: values for key, values in tensors.items() if key.startswith(f"{name}.weight_")}
        own["weight_scale"] = own["weight_scale"].float()
        weights[name] = BaseCompressor.get_value_from_registry(scheme.format).decompress(own, scheme)["weight"]
    return weights


@pytest.mark.parametrize("group", [0, 8])
@all_bits
def test_the_librarys_own_decompressor_gives_codes_times_scales(
    teacher: PreTrainedModel, tmp_path: Path, bits: int, group: int
):
    model = one(bits, 40, group)
    compressed_tensors.write(model, teacher, tmp_path, tmp_path)
    (weight,) = decompressed(tmp_path).values()
    scale = model.steps[Q].scale.repeat_interleave(group or 40, dim=1)
    assert torch.equal(weight, model.codes[Q].float() * scale)
    assert torch.equal(weight, model.weight(Q))


def test_so_it_does_where_schemes_are_mixed(teacher: PreTrainedModel, tmp_path: Path):
    model = random_model(MIXED)
    compressed_tensors.write(model, teacher, tmp_path, tmp_path)
    weights = decompressed(tmp_path)
    assert weights.keys() == MIXED.keys()
    assert all(torch.equal(weight, model.weight(name)) for name, weight in weights.items())


@pytest.mark.parametrize("code", [(0, 0), (4, 7)])
@pytest.mark.parametrize("bit", [0, 3])
def test_a_single_flipped_bit_of_a_code_is_found(
    teacher: PreTrainedModel, tmp_path: Path, code: tuple[int, int], bit: int
):
    model = random_model({Q: Weights(4), "model.layers.1.self_attn.q_proj": Weights(4, group=4)})
    compressed_tensors.write(model, teacher, tmp_path, tmp_path)
    compressed_tensors.check(model, teacher, tmp_path)
    model.codes[Q][code] = (model.codes[Q][code] + 8 ^ 1 << bit) - 8
    with pytest.raises(ValueError, match=rf"differ in 1 weights: \['{Q}'\]"):
        compressed_tensors.check(model, teacher, tmp_path)


def test_a_scale_that_is_the_next_float16_is_found(teacher: PreTrainedModel, tmp_path: Path):
    name = "model.layers.1.self_attn.q_proj"
    model = random_model({Q: Weights(4), name: Weights(4, group=4)})
    compressed_tensors.write(model, teacher, tmp_path, tmp_path)
    scale = model.steps[name].scale
    scale[4, 1] = torch.nextafter(scale[4, 1].half(), torch.tensor(9).half()).float()
    with pytest.raises(ValueError, match=rf"differ in 1 weights: \['{name}'\]"):
        compressed_tensors.check(model, teacher, tmp_path)


def test_linears_that_lack_and_linears_too_many_are_named(teacher: PreTrainedModel, tmp_path: Path):
    both = random_model({Q: Weights(4), HEAD: Weights(4)})
    compressed_tensors.write(both, teacher, tmp_path, tmp_path)
    with pytest.raises(ValueError, match=rf"the export holds other weights: \['{HEAD}'\]"):
        compressed_tensors.check(one(4), teacher, tmp_path)
    compressed_tensors.write(one(4), teacher, tmp_path, tmp_path)
    with pytest.raises(ValueError, match=rf"the export holds other weights: \['{HEAD}'\]"):
        compressed_tensors.check(both, teacher, tmp_path)


def test_weights_with_zero_points_are_refused_with_the_way_out(teacher: PreTrainedModel, tmp_path: Path):
    schemes = {name: Weights(4, symmetric=name == Q) for name in (Q, "a.0.up", "a.1.up")}
    with pytest.raises(ValueError, match="holds no asymmetric weights") as caught:
        compressed_tensors.write(random_model(schemes), teacher, tmp_path, tmp_path)
    assert "['a.0.up', 'a.1.up']" in str(caught.value)
    assert "take another of export.formats, onnx, mlx or dequantized" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_file_says_that_it_is_pytorchs(teacher: PreTrainedModel, tmp_path: Path):
    compressed_tensors.write(one(4), teacher, tmp_path, tmp_path)
    with safe_open(tmp_path / compressed_tensors.WEIGHTS, "pt") as stored:
        assert stored.metadata() == {"format": "pt"}


def test_the_same_model_gives_the_same_bytes(teacher: PreTrainedModel, teacher_folder: Path, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        compressed_tensors.write(random_model(MIXED), teacher, tmp_path, tmp_path / name)
    for file in ("config.json", compressed_tensors.WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "config.json").read_text()
    assert str(teacher_folder) not in (tmp_path / "a" / "config.json").read_text()
