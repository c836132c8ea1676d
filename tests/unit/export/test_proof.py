"""All of the state leaves, and the config names a dtype in which the model works."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    ApertusConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Glm4MoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.export.formats import EXPORT_FORMATS, export, load_exported
from pipeline.export.proof import check_state, choose_dtype, dtype_loss, probe_tokens, same_logits
from pipeline.knobs.scheme import from_short
from pipeline.quant.grid import stored_dtype
from pipeline.quant.model import QuantizedModel, state
from stages.export import told
from tests import tiny
from tests.unit.export.quantized import Q, quantized

SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 8,
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Its buffers of the state are random, too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name, values in state(model).items():
        if name not in parameters and values.is_floating_point():
            values.add_(0.3 * torch.rand_like(values) + 1e-6)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def rounded(model: PreTrainedModel, scheme: str = "W8") -> QuantizedModel:
    tokens = torch.randint(3, 259, (4, 12), generator=torch.Generator().manual_seed(1))
    options = Options("rtn", {}, batch=4, measure=False)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    return calibrate(model, tokens, valid, from_short(scheme), options, None, lambda: None).model


STATEFUL = {
    "apertus": lambda: random_model(ApertusConfig(**SHAPE)),
    "glm-moe": lambda: random_model(Glm4MoeConfig(**SHAPE, **MOE)),
}


@pytest.mark.parametrize("format_name", [name for name, format in EXPORT_FORMATS.items() if format.loads])
@pytest.mark.parametrize("name", STATEFUL)
def test_persistent_buffers_leave_with_the_rest_of_the_state_unrounded(name: str, format_name: str, tmp_path: Path):
    teacher = save(STATEFUL[name](), tmp_path / "teacher")
    start = rounded(STATEFUL[name]())
    (tmp_path / "out").mkdir()
    export(start, teacher, format_name, tmp_path / "out")
    loaded, model = load_exported(tmp_path / "out", "float32"), STATEFUL[name]()
    buffers = {key: values for key, values in state(model).items() if key not in dict(model.named_parameters())}
    assert buffers
    for key, values in buffers.items():
        assert torch.equal(loaded.get_buffer(key), values), key
        assert start.floats[key].dtype == values.dtype
    assert not all(torch.equal(values.half().float(), values.float()) for values in buffers.values())


def changed(model: PreTrainedModel) -> Tensor:
    return next(values for key, values in state(model).items() if key not in dict(model.named_parameters()))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_buffer_that_came_back_otherwise_is_named(name: str):
    reference, loaded = STATEFUL[name](), STATEFUL[name]()
    check_state(reference, loaded, QuantizedModel())
    changed(loaded).mul_(1.001)
    with pytest.raises(ValueError, match=r"state differs in 1 tensors: \['model\.layers"):
        check_state(reference, loaded, QuantizedModel())


def test_what_a_model_does_after_its_head_is_part_of_what_is_compared():
    """A soft cap that is another changes no tensor."""
    ours, theirs = (random_model(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=cap)) for cap in (1.0, 1.1))
    tokens = probe_tokens(ours)
    check_state(ours, theirs, QuantizedModel())
    with pytest.raises(ValueError, match="logits differ by"):
        same_logits(ours, theirs, tokens)
    assert same_logits(ours, ours, tokens) == 0


@pytest.mark.parametrize("context", [512, 100, 7])
def test_a_thousand_positions_are_compared_in_sequences_that_fit_the_model(context: int):
    model = tiny.llama()
    model.config.max_position_embeddings = context
    tokens = probe_tokens(model)
    assert tokens.numel() >= 1000
    assert tokens.shape[1] == min(context, 128)
    assert tokens.unique().numel() > 200


def test_a_dtypes_loss_is_the_divergence_of_its_logits_in_float64():
    model, other, tokens = tiny.llama(), tiny.llama().bfloat16(), torch.arange(3, 67).view(2, 32)
    loss = dtype_loss(model, other, tokens)
    p, q = (lm(input_ids=tokens).logits.double().log_softmax(dim=-1) for lm in (model, other))
    assert loss.kl == pytest.approx(float((p.exp() * (p - q)).sum(dim=-1).mean()), rel=1e-3)
    difference = (model(input_ids=tokens).logits - other(input_ids=tokens).logits.float()).abs().max()
    assert loss.logits_difference == pytest.approx(float(difference), rel=1e-3)
    assert dtype_loss(model, model, tokens) == (0.0, 0.0)


def overflowing(model: PreTrainedModel) -> None:
    """Scale a layer, and undo it in the next one: the same function, but what lies between leaves float16."""
    layer = model.model.layers[0].mlp
    layer.up_proj.weight.mul_(1e6)
    layer.down_proj.weight.mul_(1e-6)


def vanishing(model: PreTrainedModel) -> None:
    """As above, so that float16 would make nothing of a weight's scales."""
    layer = model.model.layers[0].mlp
    layer.up_proj.weight.mul_(1e-7)
    layer.down_proj.weight.mul_(1e7)


def small_embedding(model: PreTrainedModel) -> None:
    """Of which float16 would leave next to nothing, and which a norm brings back."""
    model.config.rms_norm_eps = 1e-30
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-30
    model.model.embed_tokens.weight.mul_(1e-8)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(1e-8)
        layer.mlp.down_proj.weight.mul_(1e-8)


@pytest.mark.parametrize("change", [overflowing, vanishing, small_embedding])
def test_a_model_that_float16_cannot_hold_or_run_leaves_in_another_dtype(change: Callable, tmp_path: Path):
    """And says what it is when it is loaded as the config says."""
    teacher = tiny.llama(tie=False)
    change(teacher)
    facts = _exported(teacher, tmp_path)
    assert facts["dtype"] in ("bfloat16", "float32")
    assert "float16" in facts["dtypes_passed_over"]
    assert math.isfinite(facts["dtype_kl"])
    tokens = torch.arange(3, 67).view(2, 32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(loaded.dtype) == f"torch.{facts['dtype']}"
    assert dtype_loss(teacher, loaded, tokens).kl < 0.1
    assert any("not float16" in line for line in told(facts))


def _exported(teacher: PreTrainedModel, tmp_path: Path) -> dict[str, Any]:
    save(teacher, tmp_path / "teacher")
    (tmp_path / "out").mkdir()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").eval().requires_grad_(False)
    return export(rounded(again), tmp_path / "teacher", "compressed-tensors", tmp_path / "out")


def test_an_ordinary_model_stays_in_float16_and_its_loss_there_is_told(tmp_path: Path):
    facts = _exported(tiny.llama(), tmp_path)
    assert facts["dtype"] == "float16"
    assert facts["dtypes_passed_over"] == facts["wider_than_float16"] == {}
    assert 0 < facts["dtype_kl"] < 1e-3
    assert facts["positions"] >= 1000
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"
    assert told(facts) == [
        f"{facts['weight_bytes'] / 1e6:.1f} MB",
        f"its config names float16, which costs {facts['dtype_kl']:.2g} nats a token",
    ]


def test_what_float16_does_not_hold_is_named(tmp_path: Path):
    teacher = tiny.llama()
    teacher.get_submodule(Q).weight.mul_(1e-6)
    teacher.model.norm.weight[0] = 1e5
    facts = _exported(teacher, tmp_path)
    assert facts["wider_than_float16"] == {f"{Q}.weight_scale": "float32", "model.norm.weight": "float32"}
    assert Q in told(facts)[-1]


def test_a_dtype_that_costs_too_much_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pipeline.export import proof

    export(quantized("W4"), tiny.save(tmp_path / "teacher"), "compressed-tensors", _made(tmp_path / "out"))
    reference = tiny.llama()
    quantized("W4").put_into(reference)()
    monkeypatch.setattr(proof, "MOST_KL", 0.0)
    facts = choose_dtype(reference, tmp_path / "out", probe_tokens(reference)[:1])
    assert (facts["dtype"], facts["dtype_kl"]) == ("float32", 0.0)
    assert facts["dtypes_passed_over"].keys() == {"float16", "bfloat16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float32


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_scales_in_float32_load_exactly_where_they_are_asked_for_in_float32(tmp_path: Path):
    teacher = tiny.llama()
    teacher.get_submodule(Q).weight.mul_(1e-8)
    start = rounded(teacher)
    assert stored_dtype(start.steps[Q].scale) == torch.float32
    again = tiny.llama()
    again.get_submodule(Q).weight.mul_(1e-8)
    export(start, save(again, tmp_path / "teacher"), "compressed-tensors", _made(tmp_path / "out"))
    loaded = load_exported(tmp_path / "out", "float32")
    loaded(input_ids=torch.tensor([[1, 2]]))
    assert torch.equal(loaded.get_submodule(Q).weight, start.codes[Q].float() * start.steps[Q].scale)
