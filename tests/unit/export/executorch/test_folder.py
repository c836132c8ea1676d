"""A program that ExecuTorch runs: codes and scales bit for bit, and the quantized model's logits."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.export.executorch import folder
from pipeline.export.formats import export
from pipeline.knobs.scheme import Activations, Override, Scheme, Weights, from_short
from pipeline.quant.model import QuantizedModel
from pipeline.runtimes import executorch
from pipeline.runtimes.opened import Asked
from tests import tiny
from tests.families import family

pytest.importorskip("executorch", reason="the extra [executorch] is not installed")

OWN = Activations(8, symmetric=False, dynamic=True)  # the grid that XNNPACK's kernel has by itself
FLOAT = {"weights": Weights(0), "activations": Activations(0)}
MADE = {  # a family each, and what differs in the program
    "llama": from_short("W4A8E8H8"),
    "qwen2": from_short("W3A16E8H6"),  # biases; a head of its own
    "qwen3": Scheme(Weights(8), OWN),  # norms of heads; embedding in float
}
MIXED = {  # linears that read one input, each otherwise: XNNPACK multiplies them in another order than the decoder does
    "grids": Scheme(
        Weights(4), Activations(16), overrides=tuple(Override(part, activations=OWN) for part in ("k", "up"))
    ),
    "floats": Scheme(
        Weights(4), Activations(16), overrides=tuple(Override(part, **FLOAT) for part in ("k", "v", "up"))
    ),
}
SWAPPED = [
    ("llama", "layers.0.input_layernorm.weight", "layers.0.post_attention_layernorm.weight"),
    ("llama", "layers.1.input_layernorm.weight", "norm.weight"),
    ("qwen3", "layers.0.self_attn.q_norm.weight", "layers.0.self_attn.k_norm.weight"),
    ("qwen2", "layers.1.self_attn.k_proj.bias", "layers.1.self_attn.v_proj.bias"),
    ("floats", "layers.0.self_attn.k_proj.weight", "layers.0.self_attn.v_proj.weight"),
    ("floats", "layers.0.self_attn.k_proj.bias", "layers.0.self_attn.v_proj.bias"),
]
TOKENS = torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(2))


def float_model(name: str) -> PreTrainedModel:
    return family("qwen2" if name in MIXED else name)


@cache
def quantized(name: str) -> QuantizedModel:
    options = Options("rtn", {}, batch=2, measure=False)
    valid, scheme = torch.ones_like(TOKENS, dtype=torch.bool), (MADE | MIXED)[name]
    return calibrate(float_model(name), TOKENS, valid, scheme, options, None, lambda: None).model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The export of each, made where it is first asked for."""

    class Made(dict):
        def __missing__(self, name: str) -> Path:
            place = tmp_path_factory.mktemp(name)
            float_model(name).save_pretrained(place / "teacher")
            tiny.save_tokenizer(tiny.merging_tokenizer(), place / "teacher")
            (place / "out").mkdir()
            export(quantized(name), place / "teacher", "executorch", place / "out")
            self[name] = place / "out"
            return self[name]

    return Made()


@pytest.mark.parametrize("name", MADE)
def test_it_says_what_the_quantized_model_says(folders: dict[str, Path], name: str):
    """A prompt at once, and token by token, with the cache in the program; a new text begins anew."""
    model = family(name)
    quantized(name).put_into(model)
    opened = executorch.open_export(folders[name], Asked(64, 1, 1))
    assert (opened.vocabulary, opened.context, opened.chunk) == (259, 64, 64)
    for tokens, told in zip(TOKENS, opened.predictions(TOKENS), strict=True):
        ours = model(tokens[None]).logits[0]
        assert float((told.values - ours).abs().max() / ours.abs().max()) < 2e-3
        by_token = torch.cat([opened._read(tokens[i : i + 1], i) for i in range(len(tokens))])
        assert float((by_token - told.values).abs().max() / ours.abs().max()) < 2e-3


def test_linears_that_xnnpack_multiplies_in_another_order_are_told_apart(folders: dict[str, Path], tmp_path: Path):
    """k before q, and up before gate, as their inputs need less work."""
    content = bytearray((folders["grids"] / folder.FILE).read_bytes())
    codes = quantized("grids").codes["model.layers.1.self_attn.k_proj"] + 8
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8).numpy().tobytes()
    content[content.index(packed)] ^= 1
    (tmp_path / folder.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"differ in 1 weights: \['model.layers.1.self_attn.k_proj'\]"):
        folder.check(quantized("grids"), float_model("grids"), tmp_path)


def test_another_code_or_scale_in_the_file_is_named(folders: dict[str, Path], tmp_path: Path):
    content = bytearray((folders["llama"] / folder.FILE).read_bytes())
    codes = quantized("llama").codes["model.layers.1.mlp.up_proj"]
    padded = torch.nn.functional.pad(codes, (0, 2)) + 8
    packed = (padded[:, ::2] | padded[:, 1::2] << 4).to(torch.uint8).numpy().tobytes()
    content[content.index(packed)] ^= 1
    (tmp_path / folder.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"differ in 1 weights: \['model.layers.1.mlp.up_proj'\]"):
        folder.check(quantized("llama"), family("llama"), tmp_path)
    content = bytearray((folders["llama"] / folder.FILE).read_bytes())
    gain = quantized("llama").floats["model.norm.weight"].float().numpy().tobytes()
    content[content.index(gain)] ^= 1
    (tmp_path / folder.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"does not have 1 tensors, bit for bit: \['model.norm.weight'\]"):
        folder.check(quantized("llama"), family("llama"), tmp_path)


@pytest.mark.parametrize(("name", "one", "other"), SWAPPED)
def test_two_tensors_of_one_shape_that_changed_places_are_named(
    folders: dict[str, Path], tmp_path: Path, name: str, one: str, other: str
):
    content = bytearray((folders[name] / folder.FILE).read_bytes())
    names = f"model.{one}", f"model.{other}"
    ours = [quantized(name).floats[tensor].float().numpy().tobytes() for tensor in names]
    assert len(ours[0]) == len(ours[1])
    assert ours[0] != ours[1]
    places = [content.index(values) for values in ours]
    for place, values in zip(places, reversed(ours), strict=True):
        content[place : place + len(values)] = values
    (tmp_path / folder.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"does not have 2 tensors, bit for bit") as caught:
        folder.check(quantized(name), float_model(name), tmp_path)
    assert all(tensor in str(caught.value) for tensor in names)


def test_executorchs_own_runner_loads_it(folders: dict[str, Path]):
    """And writes tokens; what it makes of them is no text, as the model is random."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    place, told = folders["llama"], list[tuple[int, int]]()
    runner = TextLLMRunner(str(place / folder.FILE), str(place / "tokenizer.json"))
    config = GenerationConfig(max_new_tokens=4, temperature=0.0, echo=False)
    runner.generate(
        "th", config, stats_callback=lambda stats: told.append((stats.num_prompt_tokens, stats.num_generated_tokens))
    )
    ((prompt, written),) = told
    assert prompt == 2
    assert 1 <= written <= 4


def test_a_truncated_program_is_told(folders: dict[str, Path], tmp_path: Path):
    content = (folders["llama"] / folder.FILE).read_bytes()
    (tmp_path / folder.FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"does not load .*model.pte, it may be truncated"):
        executorch.open_export(tmp_path, Asked(64, 1, 1))
    with pytest.raises(ValueError, match=r"has no model.pte; it is no export for executorch"):
        executorch.open_export(tmp_path / "empty", Asked(64, 1, 1))
