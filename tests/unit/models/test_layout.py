from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from pipeline.models import forward, layout, saved, vocabulary
from tests import families, tiny

PROJECTIONS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def test_a_saved_model_loads_in_eval_mode_without_gradients(teacher_folder: Path):
    model = saved.load_model(teacher_folder)
    expected = tiny.llama().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {p.dtype for p in saved.load_model(teacher_folder, "bfloat16").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("damage", ["missing", "truncated", "no config"])
def test_a_folder_that_holds_no_whole_model_is_named(tmp_path: Path, damage: str):
    folder = tiny.save(tmp_path / "model")
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (weights if damage == "missing" else folder / "config.json").unlink()
    with pytest.raises(ValueError, match=f"no causal language model can be loaded from {folder}"):
        saved.load_model(folder)


def test_pickled_weights_are_not_loaded(tmp_path: Path):
    folder = tiny.save(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny.llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no causal language model can be loaded"):
        saved.load_model(folder)


def test_a_tokenizer_loads_and_tells_its_special_tokens(teacher_folder: Path):
    tokenizer = saved.load_tokenizer(teacher_folder)
    assert len(tokenizer) == 259
    assert vocabulary.special_tokens(tokenizer) == [0, 1, 2]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    assert vocabulary.special_tokens(tokenizer) == [0, 1, 2, 259]


def test_holes_in_the_ids_stand_for_no_text():
    inner = Tokenizer(WordLevel({"<s>": 0, "a": 1, "b": 4, "c": 7}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")
    assert vocabulary.vocabulary(tokenizer) == [0, 1, 4, 7]
    assert vocabulary.no_text(tokenizer) == [0, 2, 3, 5, 6]
    assert vocabulary.no_text(tiny.tokenizer()) == vocabulary.special_tokens(tiny.tokenizer())


@pytest.mark.parametrize(("eos", "expected"), [(None, []), (2, [2]), ([2, 7], [2, 7])])
def test_a_model_may_have_no_end_token_one_or_several(eos: object, expected: list[int]):
    model = tiny.llama()
    model.generation_config.eos_token_id = eos
    assert vocabulary.end_tokens(model) == expected


def test_every_linear_of_the_decoder_is_found_with_layer_and_role():
    linears = layout.linears(tiny.llama(layers=3))
    expected = {(f"model.layers.{i}.{name}", i, role) for i in range(3) for role, name in PROJECTIONS.items()}
    assert {(x.name, x.layer, x.role) for x in linears} == expected
    assert len(linears) == 21


def test_other_architectures_have_roles_too_and_unknown_names_are_called_other():
    config = OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    )
    linears = layout.linears(OPTForCausalLM(config))
    assert [x.role for x in linears if x.layer == 1] == ["k", "v", "q", "o", "up", "down"]
    model = tiny.llama()
    model.model.layers[0].mlp.extra = nn.Linear(2, 2)
    assert {x.name for x in layout.linears(model) if x.role == "other"} == {"model.layers.0.mlp.extra"}


@pytest.mark.parametrize("vision_layers", [1, 2, 3])
def test_of_a_multimodal_model_the_text_decoder_is_meant(vision_layers: int):
    """Also where the vision tower comes first, and has as many layers."""
    model = families.multimodal(vision_layers)
    assert layout.text_decoder(model)[0] == "model.language_model"
    assert layout.decoder_layers(model)[0] == "model.language_model.layers"
    assert {x.name.partition(".layers")[0] for x in layout.linears(model)} == {"model.language_model"}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_of_a_language_model_the_text_decoder_holds_all_but_the_head(name: str):
    model = families.family(name)
    inside = {*layout.text_decoder(model)[1].parameters(), *model.get_output_embeddings().parameters()}
    assert [key for key, parameter in model.named_parameters() if parameter not in inside] == []


@pytest.mark.parametrize(
    ("kind", "changed", "layers"),
    [
        ("BartConfig", {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2}, "model.decoder.layers"),
        ("ModernBertDecoderConfig", {"num_hidden_layers": 2}, "model.layers"),  # whose head is called decoder
    ],
)
def test_a_decoder_is_found_under_another_name(kind: str, changed: dict[str, Any], layers: str):
    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4} | changed
    config = getattr(transformers, kind)(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    assert layout.decoder_layers(model)[0] == layers
    assert len(layout.decoder_layers(model)[1]) == 2
    assert layout.linears(model)[0].name.startswith(f"{layers}.0.")


def test_a_model_without_linears_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear in transformer\.h"):
        layout.linears(model)


def test_a_model_without_decoder_layers_is_refused():
    model = tiny.llama()
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="has no list of 5 decoder layers"):
        layout.decoder_layers(model)


def test_role_names_say_each_shape_once():
    names = layout.role_names(layout.linears(tiny.llama()))
    assert names.split(", ") == [f"model.layers.*.{name} ({role})" for role, name in PROJECTIONS.items()]


@pytest.mark.parametrize("tie", [True, False])
def test_hidden_states_times_the_head_are_the_logits(tokens: Tensor, tie: bool):
    model = tiny.llama(tie=tie)
    logits = forward.hidden_states(model, tokens) @ forward.head_weight(model).T
    torch.testing.assert_close(logits, model(input_ids=tokens).logits)


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    config = GraniteConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0, initializer_range=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="GraniteForCausalLM changes its logits after the head"):
        forward.head_weight(GraniteForCausalLM(config).eval())


def test_a_broken_model_is_not_taken_for_one_with_another_head():
    """What is not finite is for the training loop to name, with step and layer."""
    model = tiny.llama()
    model.model.norm.weight.data[0] = float("nan")
    assert forward.head_weight(model) is model.lm_head.weight


def test_casting_takes_the_linears_of_the_decoder_only():
    model = tiny.llama()
    forward.cast_linears(model, "bfloat16")
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert wide == {name for name, _ in model.named_parameters() if "norm" in name or "embed" in name}


def test_the_dtype_knob_names_a_forward():
    linear = nn.Linear(4, 4)
    for dtype in ("float32", "bfloat16"):
        with forward.autocast(dtype):
            assert linear(torch.ones(1, 4)).dtype == forward.torch_dtype(dtype)


def test_hooks_see_what_each_linear_reads_until_they_are_removed(tokens: Tensor):
    model = tiny.llama()
    linears = layout.linears(model)
    shapes: dict[str, tuple[int, ...]] = {}
    handles = forward.on_layer_inputs(model, linears, lambda linear, x: shapes.update({linear.name: tuple(x.shape)}))
    model(input_ids=tokens)
    assert shapes.keys() == {x.name for x in linears}
    assert shapes["model.layers.0.mlp.down_proj"] == (6, 20, 64)
    for handle in handles:
        handle.remove()
    shapes.clear()
    model(input_ids=tokens)
    assert not shapes
