"""A model is what its files say, or there is none: each fault is named, and nothing is drawn at random."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
)

from pipeline.models import loading, saved, soundness, sources
from tests import families, tiny

SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model, its head a weight of its own, and its tokenizer."""
    return tiny.save(tmp_path / "model", tie=False)


def refused(folder: Path) -> str:
    """What from_path answers; it must leave nothing."""
    out = folder.parent / "out"
    with pytest.raises(ValueError, match="cannot be the teacher") as caught:
        sources.from_path(str(folder), "", out)
    assert not out.exists() or not any(out.iterdir())
    assert "truncated" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).partition("cannot be the teacher: ")[2]


def change(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    changed = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str):
    change(folder, without(name))
    assert f"LlamaForCausalLM lacks {name}:" in refused(folder)
    with pytest.raises(ValueError, match=f"no causal language model can be loaded from .* lacks {name}"):
        saved.load_model(folder)


def test_a_tied_head_may_be_absent_and_a_buffer_that_is_worked_out_may_be_there(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tie=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    change(folder, lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    sources.from_path(str(folder), "", tmp_path / "out")
    loaded = saved.load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in tiny.llama().state_dict().items())


def test_unexpected_and_mismatched_tensors_are_named(folder: Path):
    change(
        folder,
        lambda weights: weights | {"v_head.weight": torch.ones(1, 32), "model.norm.weight": torch.ones(16)},
    )
    message = refused(folder)
    assert "has no place for v_head.weight" in message
    assert "differs in the shape of model.norm.weight [16] for [32]" in message


@pytest.mark.parametrize("begin", ["module.", "_orig_mod.", "base_model.model.", "transformer."])
def test_a_wrapper_around_the_names_is_told(folder: Path, begin: str):
    change(folder, lambda weights: {begin + name: value for name, value in weights.items()})
    assert f"the names in the file begin with {begin!r}, as a wrapper's do" in refused(folder)


def test_a_part_that_is_not_there_is_named_and_so_is_a_tensor_in_two(tmp_path: Path):
    folder = tmp_path / "model"
    tiny.llama().save_pretrained(folder, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(folder)
    parts = sorted(folder.glob("model-*.safetensors"))
    sources.from_path(str(folder), "", tmp_path / "whole")
    first = load_file(parts[0])
    save_file(load_file(parts[1]) | first, parts[1], metadata={"format": "pt"})
    assert f"tensors lie in two parts: {min(first)}" in refused(folder)
    parts[1].unlink()
    assert f"names parts that are not there: {parts[1].name}" in refused(folder)


def test_a_single_file_beside_an_index_is_not_chosen_between(folder: Path):
    (folder / loading.INDEX).write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert "has both model.safetensors and model.safetensors.index.json" in refused(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert "its weights are pickled (pytorch_model.bin), and a pickle can run code" in refused(folder)


def test_an_adapter_is_refused(folder: Path):
    (folder / "adapter_config.json").write_text("{}")
    assert "it is an adapter" in refused(folder)


def causal_bert() -> PreTrainedModel:
    return BertLMHeadModel(BertConfig(**SMALL))


OTHERS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "reward model": (
        lambda: LlamaForSequenceClassification(tiny.llama().config),
        "config.json calls it a LlamaForSequenceClassification, which has no head",
    ),
    "embedding": (
        lambda: Qwen2Model(Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)),
        "config.json calls it a Qwen2Model, which has no head",
    ),
    "masked": (lambda: BertForMaskedLM(BertConfig(**SMALL)), "config.json calls it a BertForMaskedLM"),
    "encoder": (causal_bert, "BertLMHeadModel is no causal language model: its logits change by"),
    "encoder-decoder": (
        lambda: BartForConditionalGeneration(
            BartConfig(vocab_size=259, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32)
        ),
        "a bart is an encoder-decoder",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_causal_language_model_is_told_by_its_kind(tmp_path: Path, kind: str):
    build, expected = OTHERS[kind]
    build().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    assert refused(tmp_path / "model").startswith(expected)


def test_a_reward_model_that_hides_it_is_refused_by_its_tensors(folder: Path):
    configure(folder, architectures=None, tie_word_embeddings=True)
    change(folder, lambda weights: without("lm_head.weight")(weights) | {"score.weight": torch.ones(1, 32)})
    assert "has no place for score.weight" in refused(folder)


CODE = "from pathlib import Path\nPath(%r).touch()\n"


def test_code_of_a_checkpoint_never_runs_and_nothing_asks(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    ran = folder / "ran"
    for file in ("mine.py", "generate.py"):
        (folder / file).write_text(CODE % str(ran))
    own = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    configure(folder, auto_map=own)  # of a type that transformers knows: its own class is taken
    sources.from_path(str(folder), "", folder.parent / "known")
    configure(folder, model_type="mynewlm")
    assert "its type 'mynewlm' needs code of its own (auto_map in config.json), and no code" in refused(folder)
    configure(folder, auto_map=None)
    assert "knows no model_type 'mynewlm'" in refused(folder)
    configure(folder, model_type="llama", _attn_implementation="someone/kernel")
    assert "the attention kernel 'someone/kernel', and no code" in refused(folder)
    configure(folder, _attn_implementation=None)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer.json").unlink()
    assert "its tokenizer needs code of its own (auto_map in tokenizer_config.json), and no code" in refused(folder)
    assert not ran.exists()


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path):
    tiny.llama().save_pretrained(tmp_path / "model")
    assert "it has no tokenizer; save one beside the weights" in refused(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_named(folder: Path, name: str, value: float):
    def break_one(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights[name][3, 5] = value
        return weights

    change(folder, break_one)
    assert f"these weights are not finite: {name} (1 of " in refused(folder)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_is_sound(tmp_path: Path, name: str):
    families.family(name).save_pretrained(tmp_path)
    model = loading.causal_lm(tmp_path, torch.float32)
    soundness.check_finite(model)
    soundness.check_causal(model)
    expected, loaded = families.family(name).state_dict(), model.state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
