"""A folder for mlx-lm of each family that has one, opened by mlx and mlx-lm."""

from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.calibration.rotation import rotate
from pipeline.export import llama_like, refusals
from pipeline.export.formats import export
from pipeline.export.mlx import folder as mlx_folder
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights, from_short
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.families import FAMILIES, family

WINDOWED = ("mistral", "qwen2-window")  # refused
WRITTEN = [
    name for name, (kind, _) in FAMILIES.items() if kind.model_type in llama_like.ARCHITECTURES and name not in WINDOWED
]
ASYMMETRIC = Scheme(
    Weights(4, symmetric=False, group=32),
    Activations(0),
    KVCache(0),
    embedding=Weights(5, symmetric=False),
    head=Weights(7, symmetric=False),
)
SCHEMES = {**{name: from_short(name) for name in ("W4E8H6", "W3E5H7", "W2g32", "W8E4H4")}, "asymmetric": ASYMMETRIC}
CLOSE = 0.02  # of the largest logit: mlx computes in float16


def rounded(model: PreTrainedModel, scheme: Scheme, tokens: Tensor, valid: Tensor) -> QuantizedModel:
    return calibrate(model, tokens, valid, scheme, Options("mse", {}, batch=6, measure=False), None, lambda: None).model


def written(quantized: QuantizedModel, teacher: PreTrainedModel, folder: Path) -> Path:
    """The folder of an export."""
    teacher.save_pretrained(folder / "teacher")
    tiny.save_tokenizer(tiny.merging_tokenizer(), folder / "teacher")
    (folder / "out").mkdir()
    export(quantized, folder / "teacher", "mlx", folder / "out")
    return folder / "out"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mlx_reads_the_weights_that_codes_stand_for(scheme: str, tokens: Tensor, valid: Tensor, tmp_path: Path):
    """In float32, exactly."""
    quantized = rounded(rotate(family("llama"), 0), SCHEMES[scheme], tokens, valid)
    stored = load_file(written(quantized, family("llama"), tmp_path) / "model.safetensors")
    for name in quantized.codes:
        words, scale, bias = (stored[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        group = quantized.codes[name].shape[1] // scale.shape[1]
        theirs = mx.dequantize(
            mx.array(words.numpy()),
            mx.array(scale.float().numpy()),
            mx.array(bias.float().numpy()),
            group_size=group,
            bits=32 * words.shape[1] // quantized.codes[name].shape[1],
        )
        ours = quantized.weight(name)
        assert np.abs(np.array(theirs) - ours.numpy()).max() <= 1e-6 * ours.abs().max()


@pytest.mark.parametrize("scheme", ["W4E8H6", "asymmetric"])
@pytest.mark.parametrize(("name", "turned"), [*((name, False) for name in WRITTEN), ("llama", True), ("qwen3", True)])
def test_mlx_lm_computes_what_the_quantized_model_does(
    name: str, turned: bool, scheme: str, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    model = rotate(family(name), 0) if turned else family(name)
    quantized = rounded(model, SCHEMES[scheme], tokens, valid)
    loaded, tokenizer = mlx_lm.load(str(written(quantized, family(name), tmp_path)))
    logits = np.array(loaded(mx.array(tokens.numpy())).astype(mx.float32))
    whole = family(name)
    quantized.put_into(whole)
    expected = whole(input_ids=tokens).logits.numpy()
    assert np.abs(logits - expected).max() < CLOSE * np.abs(expected).max()
    assert tokenizer.encode("to be, or not") == tiny.merging_tokenizer()("to be, or not")["input_ids"]


def test_the_folder_does_not_say_where_the_teacher_lay(tokens: Tensor, valid: Tensor, tmp_path: Path):
    quantized = rounded(family("llama"), SCHEMES["W2g32"], tokens, valid)
    folder = written(quantized, family("llama"), tmp_path)
    assert str(tmp_path) not in (folder / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", ["q_proj.weight", "k_proj.scales", "down_proj.biases", "norm.weight"])
def test_a_changed_tensor_is_named(part: str, tokens: Tensor, valid: Tensor, tmp_path: Path):
    model = family("llama")
    quantized = rounded(model, from_short("W4E8"), tokens, valid)
    folder = written(quantized, family("llama"), tmp_path)
    mlx_folder.check(quantized, model, folder)
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(stored) if name.endswith(part))
    stored[name].view(torch.uint8).reshape(-1)[3] ^= 4
    save_file(stored, folder / "model.safetensors")
    told = name if "norm" in name else name.rpartition(".")[0]
    with pytest.raises(ValueError, match=rf"not those that were written: \['{told}'\]; foreign: \[\]"):
        mlx_folder.check(quantized, model, folder)
    save_file({"another": stored.pop(name), **stored}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"\['{told}'\]; foreign: \['another'"):
        mlx_folder.check(quantized, model, folder)


def test_what_mlx_does_not_hold_is_refused_by_name():
    model, grids = family("llama"), {"model.layers.1.mlp.up_proj": Weights(4, group=16), "lm_head": Weights(6)}
    assert list(refusals.problems("mlx", model, tiny.tokenizer(), grids)) == [
        "model.layers.*.mlp.up_proj: a group of 16 is no multiple of 32, mlx's smallest; take 32, 64 or 128"
    ]
    (problem,) = refusals.problems("mlx", tiny.llama(hidden=48), tiny.tokenizer(), {"lm_head": Weights(6)})
    assert problem == "lm_head: 48 inputs are no multiple of 32, mlx's smallest group; leave it in float"
    (problem,) = refusals.problems("mlx", family("gemma"), tiny.tokenizer(), {})
    assert problem.startswith("gemma models are not written for mlx-lm; llama, mistral")
    for name in WINDOWED:
        (problem,) = refusals.problems("mlx", family(name), tiny.tokenizer(), {})
        assert problem.startswith("it has a sliding window, which mlx-lm's")
