"""A GGUF of each family that has one, read by gguf, by transformers and by llama.cpp's rules."""

import dataclasses
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Regex, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.calibration.plan import plan
from pipeline.calibration.rotation import rotate
from pipeline.export import refusals
from pipeline.export.formats import export
from pipeline.export.gguf import file as gguf_file
from pipeline.export.gguf import model as gguf_model
from pipeline.export.gguf import tokenizer as gguf_tokenizer
from pipeline.knobs.scheme import from_short
from pipeline.models import loading
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.families import FAMILIES, family

WRITTEN = [name for name, (kind, _) in FAMILIES.items() if kind.model_type in gguf_model.ARCHITECTURES]
LLAMA_3 = next(pattern for pattern, name in gguf_tokenizer.SPLITS.items() if name == "llama-bpe")


def tokenizer(ignore_merges: bool = False, **parts: object) -> PreTrainedTokenizerFast:
    """The tiny one that has a merge, with other parts."""
    whole = tiny.merging_tokenizer()
    inner = whole.backend_tokenizer
    inner.model.ignore_merges = ignore_merges
    for part, value in parts.items():
        setattr(inner, part, value)
    return whole


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save(folder: Path, model: PreTrainedModel, **parts: object) -> Path:
    model.save_pretrained(folder)
    tiny.save_tokenizer(tokenizer(**parts), folder)
    return folder


def rounded(model: PreTrainedModel, scheme: str, tokens: Tensor, valid: Tensor) -> QuantizedModel:
    options = Options("mse", {}, batch=6, measure=False)
    return calibrate(model, tokens, valid, from_short(scheme), options, None, lambda: None).model


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("scheme", ["W4", "W3g32E8H6", "W8E5H4"])
def test_what_is_read_back_is_what_was_trained(name: str, scheme: str, tokens: Tensor, valid: Tensor, tmp_path: Path):
    """Every tensor, in llama.cpp's order of rows, by gguf's own reader; then a bit of the file is another."""
    start = rounded(family(name), scheme, tokens, valid)
    teacher = save(tmp_path / "teacher", family(name))
    (tmp_path / "out").mkdir()
    facts = export(start, teacher, "gguf", tmp_path / "out")
    assert facts["weight_bytes"] == (tmp_path / "out/model.gguf").stat().st_size
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["activations.json", "model.gguf"]
    weight = start.weight("model.layers.1.mlp.up_proj")
    moved = dataclasses.replace(start, steps=dict(start.steps))
    step = start.steps["model.layers.1.mlp.up_proj"]
    moved.steps["model.layers.1.mlp.up_proj"] = Step(step.scale * 2, step.zero)
    assert not torch.equal(moved.weight("model.layers.1.mlp.up_proj"), weight)
    with pytest.raises(ValueError, match=r"1 tensors .* \['model.layers.1.mlp.up_proj.weight'\]"):
        gguf_file.check(moved, family(name), tmp_path / "out")


@pytest.mark.parametrize(("name", "turned"), [("llama", False), ("llama", True), ("qwen2", False)])
def test_transformers_reads_the_same_model_from_it(
    name: str, turned: bool, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    """Which undoes the order of q's and k's rows by itself."""
    model = rotate(family(name), 0) if turned else family(name)
    start = rounded(model, "W4E8H8", tokens, valid)
    teacher = save(tmp_path / "teacher", family(name))
    (tmp_path / "out").mkdir()
    export(start, teacher, "gguf", tmp_path / "out")
    reference = family(name)
    start.put_into(reference)
    loaded = loading.causal_lm(tmp_path / "out", torch.float32, gguf="model.gguf")
    assert torch.equal(loaded(input_ids=tokens).logits, reference(input_ids=tokens).logits)
    said = loading.tokenizer(tmp_path / "out", gguf="model.gguf")
    text = "The top ten: 1, 2; it's naïve.\n\ttabs"
    assert said(text)["input_ids"] == tokenizer()(text)["input_ids"]


def test_a_weight_that_embedding_and_head_share_is_stored_once(tokens: Tensor, valid: Tensor, tmp_path: Path):
    for turned, head in ((False, False), (True, True)):
        model = rotate(family("llama"), 0) if turned else tiny.llama()
        start = rounded(model, "W4E8H6", tokens, valid)
        out = tmp_path / str(turned)
        out.mkdir()
        export(start, save(tmp_path / "teacher", family("llama") if turned else tiny.llama()), "gguf", out)
        assert ("output.weight" in {tensor.name for tensor in GGUFReader(out / "model.gguf").tensors}) == head


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({}, "gpt-2"),
        (
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                )
            },
            "smollm",
        ),
        ({"pre_tokenizer": split(LLAMA_3), "ignore_merges": True}, "llama-bpe"),
        ({"pre_tokenizer": split(LLAMA_3.replace("{1,3}", "")), "normalizer": normalizers.NFC()}, "qwen2"),
    ],
)
def test_the_way_of_splitting_is_told_by_the_rules(parts: dict, name: str):
    assert gguf_tokenizer.splitting(tokenizer(**parts)) == name


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "no byte-level BPE"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "no name for"),
        ({"pre_tokenizer": split(r"\w+")}, "no name for"),
        ({"pre_tokenizer": split(LLAMA_3)}, "no name for"),  # whose merges count
        ({"normalizer": normalizers.Lowercase()}, "normalized by"),
    ],
)
def test_a_way_of_splitting_without_a_name_is_refused(parts: dict, said: str):
    with pytest.raises(ValueError, match=said):
        gguf_tokenizer.splitting(tokenizer(**parts))


def problems(model: PreTrainedModel, scheme: str, **parts: object) -> list[str]:
    grids = {linear.name: weights for linear, (weights, _) in plan(model, from_short(scheme)).items() if weights.bits}
    return list(dict.fromkeys(refusals.problems("gguf", model, tokenizer(**parts), grids)))


def test_what_a_gguf_cannot_hold_is_told_before_anything_is_quantized():
    assert problems(family("llama"), "W4E8H6") == []
    (problem,) = problems(family("bloom"), "W4")
    assert problem == f"bloom models are not written into a GGUF; {', '.join(gguf_model.ARCHITECTURES)} are"
    model = family("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert problems(model, "W4") == ["its rotary embedding is 'dynamic'; a GGUF gets default, linear, llama3"]
    narrow = tiny.llama(hidden=16)
    lines = problems(narrow, "W4", pre_tokenizer=pre_tokenizers.Whitespace())
    assert lines[0].startswith("its tokenizer is no byte-level BPE")
    assert (
        "model.layers.*.self_attn.q_proj: 16 inputs are no multiple of 32, the width of a block; leave it in float"
        in lines
    )


def test_scales_that_blocks_do_not_hold_are_named(tokens: Tensor, valid: Tensor, tmp_path: Path):
    model = family("llama")
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e7
    start = rounded(model, "W4", tokens, valid)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.up_proj: a block's scale is float16"):
        gguf_file.write(start, family("llama"), save(tmp_path / "teacher", family("llama")), tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_the_same_model_gives_the_same_bytes(tokens: Tensor, valid: Tensor, tmp_path: Path):
    start, teacher = rounded(family("qwen3"), "W4E8", tokens, valid), save(tmp_path / "teacher", family("qwen3"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        gguf_file.write(start, family("qwen3"), teacher, tmp_path / name)
    assert (tmp_path / "a/model.gguf").read_bytes() == (tmp_path / "b/model.gguf").read_bytes()


def test_llama_3_1s_frequencies_are_those_that_transformers_turns_by():
    parameters = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = family("llama").config
    config.rope_parameters = parameters
    config.head_dim = 64
    kept: dict[str, Tensor] = {}

    class Writer:
        def add_tensor(self, name: str, values: object) -> None:
            kept[name] = torch.from_numpy(values)  # type: ignore[arg-type]

    gguf_model.ROPE["llama3"](Writer(), config, parameters)  # type: ignore[arg-type]
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 5e5 ** (torch.arange(0, 64, 2).float() / 64)
    torch.testing.assert_close(plain / kept["rope_freqs.weight"], expected)


def test_every_grid_of_the_scheme_is_looked_at():
    (problem,) = problems(family("llama"), "W4E8g16")
    assert problem.startswith("model.embed_tokens: a group of 16 is no multiple")
