"""An ONNX decoder of each family that has one, run by onnxruntime and onnxruntime-genai, and read by onnx."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.calibration.rotation import rotate
from pipeline.export import llama_like, refusals
from pipeline.export.formats import export
from pipeline.export.onnx import folder as onnx_folder
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights, from_short
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.families import FAMILIES, family

WRITTEN = [name for name, (kind, _) in FAMILIES.items() if kind.model_type in llama_like.ARCHITECTURES]
CLOSE = 1e-5  # of the largest logit: another order of float32 sums
FLIPS = 1e-3  # nats a token: which puts some signals on the next number of their grid
ASYMMETRIC = Scheme(
    weights=Weights(bits=3, symmetric=False, group=16),
    activations=Activations(bits=8, symmetric=False),
    kv_cache=KVCache(bits=4, symmetric=False, group=8),
    embedding=Weights(bits=5, symmetric=False, group=8),
    head=Weights(bits=7, symmetric=False),
)
SCHEMES = {
    **{name: from_short(name) for name in ("W4", "W4g16A8KV8E8H6", "W2", "W8A16E8g16H8g16", "W6E6")},
    "asymmetric": ASYMMETRIC,
    "dynamic": dataclasses.replace(ASYMMETRIC, activations=Activations(bits=5, symmetric=False, dynamic=True)),
    "static-6": Scheme(Weights(4), Activations(bits=6), KVCache(0), embedding=Weights(8), head=Weights(0)),
}


def rounded(model: PreTrainedModel, scheme: Scheme, tokens: Tensor, valid: Tensor) -> QuantizedModel:
    return calibrate(model, tokens, valid, scheme, Options("mse", {}, batch=6, measure=False), None, lambda: None).model


def save(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    tiny.save_tokenizer(tiny.merging_tokenizer(), folder)
    return folder


def written(quantized: QuantizedModel, teacher: PreTrainedModel, folder: Path) -> Path:
    """The folder of an export."""
    (folder / "out").mkdir()
    export(quantized, save(folder / "teacher", teacher), "onnx", folder / "out")
    return folder / "out"


class Session:
    """onnxruntime, as exact as it is told to be."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in onnx_folder.EXACT.items():
            options.add_session_config_entry(key, value)
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, tokens: Tensor, mask: Tensor, past: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Logits, and keys and values for the next call. mask: int64 [batch, past + tokens]."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        arrays = {"input_ids": tokens.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy()}
        for name, (_, heads, _, size) in ((n, s) for n, s in self.shapes.items() if n.startswith("past")):
            empty = np.zeros((len(tokens), heads, 0, size), dtype=np.float32)
            arrays[name] = empty if past is None else past[name.replace("past_key_values", "present")]
        return dict(zip(self.outputs, self.session.run(None, arrays), strict=True))


def reference(quantized: QuantizedModel, model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    quantized.put_into(model)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits


def difference(logits: np.ndarray, expected: Tensor) -> float:
    return float((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max())


def kl(logits: np.ndarray, expected: Tensor) -> float:
    """KL of the quantized model's predictions from these: mean over tokens, in nats."""
    p, q = (values.double().log_softmax(dim=-1) for values in (expected, torch.from_numpy(logits)))
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


@pytest.mark.parametrize(
    ("name", "turned", "scheme"),
    [
        *(("llama", False, scheme) for scheme in SCHEMES),
        *((name, False, scheme) for name in WRITTEN for scheme in ("W4", "W8A16E8g16H8g16")),
        *((name, True, "W4g16A8KV8E8H6") for name in ("llama", "qwen3")),
    ],
)
def test_onnxruntime_computes_what_the_quantized_model_does(
    name: str, turned: bool, scheme: str, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    model = rotate(family(name), 0) if turned else family(name)
    quantized = rounded(model, SCHEMES[scheme], tokens, valid)
    session, mask = Session(written(quantized, family(name), tmp_path)), torch.ones_like(tokens)
    expected, on_grid = reference(quantized, family(name), tokens, mask), scheme not in ("W4", "W2", "W6E6")
    tell, most = (kl, FLIPS) if on_grid else (difference, CLOSE)
    assert 0 <= tell(session.run(tokens, mask)["logits"], expected) < most
    first = session.run(tokens[:, :13], mask[:, :13])
    second = session.run(tokens[:, 13:], mask, first)
    assert 0 <= tell(second["logits"], expected[:, 13:]) < most


def test_padding_in_front_is_not_seen(tokens: Tensor, valid: Tensor, tmp_path: Path):
    quantized = rounded(family("qwen2"), from_short("W4A16"), tokens, valid)
    session, mask = Session(written(quantized, family("qwen2"), tmp_path)), torch.ones_like(tokens)
    mask[1, :5] = mask[2, :9] = 0
    expected = reference(quantized, family("qwen2"), tokens, mask)
    logits = session.run(tokens, mask)["logits"]
    seen = mask.bool()
    assert 0 <= kl(logits[seen.numpy()], expected[seen]) < CLOSE


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_onnxruntime_genai_continues_as_the_quantized_model_does(
    name: str, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    quantized = rounded(family(name), from_short("W4A16E8H6"), tokens, valid)
    model = onnxruntime_genai.Model(str(written(quantized, family(name), tmp_path)))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=30, min_length=30)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(tokens[:1].numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    whole = family(name)
    quantized.put_into(whole)
    expected = whole.generate(tokens[:1], do_sample=False, min_length=30, max_length=30)
    assert list(generator.get_sequence(0)) == expected[0].tolist()
    encoded = onnxruntime_genai.Tokenizer(model).encode("to be, or not to be?")
    assert encoded.tolist() == tiny.merging_tokenizer()("to be, or not to be?")["input_ids"]


def test_gains_that_rotation_made_one_number_and_shared_weights_take_no_room(
    tokens: Tensor, valid: Tensor, tmp_path: Path
):
    quantized = rounded(rotate(family("llama"), 0), from_short("W4A16E8H6"), tokens, valid)
    graph = onnx.load(written(quantized, family("llama"), tmp_path) / "model.onnx").graph
    assert [list(tensor.dims) for tensor in graph.initializer if "norm" in tensor.name] == 5 * [[1]]
    (tmp_path / "tied").mkdir()
    quantized = rounded(tiny.llama(), from_short("W4A16E8H6"), tokens, valid)
    graph = onnx.load(written(quantized, tiny.llama(), tmp_path / "tied") / "model.onnx").graph
    assert not [tensor.name for tensor in graph.initializer if "lm_head" in tensor.name]


@pytest.mark.parametrize("scheme", ["W4A16E8H6", "asymmetric"])
@pytest.mark.parametrize("part", ["q_proj.weight", "q_proj.weight_scale", "lm_head.high.weight", "embed_tokens.weight"])
def test_a_changed_tensor_is_named(part: str, scheme: str, tokens: Tensor, valid: Tensor, tmp_path: Path):
    model = rotate(family("llama"), 0)
    quantized = rounded(model, SCHEMES.get(scheme) or from_short(scheme), tokens, valid)
    folder = written(quantized, family("llama"), tmp_path)
    onnx_folder.check(quantized, model, folder)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    changed = next(tensor for tensor in graph.initializer if tensor.name.endswith(part))
    where = {entry.key: int(entry.value) for entry in changed.external_data if entry.key != "location"}
    content = bytearray((folder / "model.onnx.data").read_bytes())
    if where:
        content[where["offset"] + 1] ^= 1
        (folder / "model.onnx.data").write_bytes(content)
    else:
        whole = (folder / "model.onnx").read_bytes()
        assert whole.count(changed.raw_data) == 1
        other = bytes([*changed.raw_data[:1], changed.raw_data[1] ^ 1, *changed.raw_data[2:]])
        (folder / "model.onnx").write_bytes(whole.replace(changed.raw_data, other))
    name = changed.name.replace(".high", "").rpartition(".")[0]
    with pytest.raises(ValueError, match=rf"others than were written: \['{name}'\]"):
        onnx_folder.check(quantized, model, folder)


def test_missing_and_foreign_tensors_are_named(tokens: Tensor, valid: Tensor, tmp_path: Path):
    model = family("llama")
    quantized = rounded(model, from_short("W4"), tokens, valid)
    folder = written(quantized, family("llama"), tmp_path)
    name = "model.layers.0.mlp.up_proj"
    quantized.codes["another"] = quantized.codes.pop(name)
    with pytest.raises(
        ValueError, match=rf"missing: \['another.weight'\], foreign: \['{name}.weight', '{name}.weight_sc"
    ):
        onnx_folder.check(quantized, model, folder)


def test_what_the_graph_does_not_compute_is_refused_by_name():
    (problem,) = refusals.problems("onnx", family("gemma"), tiny.tokenizer(), {})
    assert problem == "gemma models are not written for ONNX; llama, mistral, qwen2, qwen3 are"
    model = family("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    (problem,) = refusals.problems("onnx", model, tiny.tokenizer(), {})
    assert problem.startswith("its rotary embedding is 'dynamic'")
    model.config.rope_parameters = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}
    (problem,) = refusals.problems("onnx", model, tiny.tokenizer(), {})
    assert problem.startswith("its rotary embedding turns a part of each head")
    assert not list(refusals.problems("onnx", family("qwen3"), tiny.tokenizer(), {}))


def test_keys_per_channel_are_refused_before_and_when_it_is_written(tmp_path: Path):
    cache, model = KVCache(4, keys="channel"), tiny.llama()
    (problem,) = refusals.problems("onnx", model, tiny.tokenizer(), {}, refusals.Signals({}, cache))
    assert problem == "its keys have a scale a channel, found when a block of tokens is whole; take kv_cache.keys token"
    with pytest.raises(ValueError, match=f"ONNX cannot hold this model: {problem}"):
        onnx_folder.write(QuantizedModel(kv_cache=cache), model, tmp_path, tmp_path)
    assert not [*tmp_path.iterdir()]
    for allowed in (KVCache(4), KVCache(0, keys="channel")):
        assert not list(refusals.problems("onnx", model, tiny.tokenizer(), {}, refusals.Signals({}, allowed)))


def test_a_model_without_an_end_is_continued_to_the_length_that_is_asked_for(
    tokens: Tensor, valid: Tensor, tmp_path: Path
):
    quantized, teacher = rounded(family("llama"), from_short("W4"), tokens, valid), family("llama")
    teacher.generation_config.eos_token_id = teacher.config.eos_token_id = None
    folder = written(quantized, teacher, tmp_path)
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=40)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(tokens[:1].numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 40
