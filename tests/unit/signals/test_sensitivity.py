"""One layer at a time on, against a plain loop over whole forwards of copies of the model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.knobs.scheme import from_short
from pipeline.models import forward, layout
from pipeline.quant.model import QuantizedModel
from pipeline.signals import sensitivity
from pipeline.signals.labels import Text
from pipeline.signals.sensitivity import one_layer_on
from tests import tiny
from tests.families import family

Load = Callable[[], PreTrainedModel]


def quantized(load: Load, text: Text, method: str = "rtn") -> QuantizedModel:
    options = Options(method, {}, batch=4, measure=False)
    return calibrate(load(), text.tokens, text.valid, from_short("W4A8"), options, None, lambda: None).model


def plainly(load: Load, ours: QuantizedModel, text: Text) -> dict[int, float]:
    """KL by layer in double precision: a fresh model a layer, all of it run, on all sequences at once."""
    teacher = load().double()
    prefix, layers = layout.decoder_layers(teacher)
    counted = text.valid[:, 1:]

    def log_p(model) -> Tensor:
        return functional.log_softmax(model(input_ids=text.tokens).logits[:, :-1][counted], dim=-1)

    kl_by_layer = {}
    for layer in range(len(layers)):
        model = load().double()
        for key, parameter in model.named_parameters():
            if key.startswith(f"{prefix}.{layer}."):
                linear = key.removesuffix(".weight")
                parameter.copy_(ours.weight(linear) if linear in ours.codes else ours.floats[key])
        kl = functional.kl_div(log_p(model), log_p(teacher), log_target=True, reduction="batchmean")
        kl_by_layer[layer] = float(kl)
    return kl_by_layer


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gpt-neox", "falcon-rw", "bloom", "opt", "mamba"])
@pytest.mark.parametrize("batch", [4, 6])
def test_it_is_what_a_plain_loop_measures(name: str, batch: int, text: Text):
    """Among them families whose layers give tuples, take a mask a layer, or have no attention."""
    load = partial(family, name)
    ours = quantized(load, text)
    kl_by_layer = one_layer_on(load().double(), ours, replace(text, batch=batch), lambda _: None)
    precise = 1e-4 if name == "mamba" else 1e-6  # its scan is float32 whatever the model is
    assert kl_by_layer == pytest.approx(plainly(load, ours, text), rel=precise)
    assert min(kl_by_layer.values()) > 0


def test_a_layer_takes_its_rescaled_norms_along(text: Text):
    """AWQ divides norms by what it multiplies weights with: the weights alone would be another function."""
    ours = quantized(tiny.llama, text, "awq")
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.allclose(ours.floats[norm].float(), tiny.llama().get_parameter(norm), rtol=0.1)
    kl_by_layer = one_layer_on(tiny.llama().double(), ours, text, lambda _: None)
    assert kl_by_layer == pytest.approx(plainly(tiny.llama, ours, text), rel=1e-6)


def test_layer_1_is_not_layer_10(text: Text):
    load = partial(tiny.llama, layers=11, hidden=16)
    ours = quantized(load, text)
    kl_by_layer = one_layer_on(load().double(), ours, replace(text, batch=6), lambda _: None)
    assert kl_by_layer == pytest.approx(plainly(load, ours, text), rel=1e-6)


def test_the_model_is_as_it_was(text: Text):
    model = tiny.llama()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calls: list[int] = []
    one_layer_on(model, quantized(tiny.llama, text), text, calls.append)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert len(calls) == 2 * 2  # layers, batches
    hidden = forward.hidden_states(model, text.tokens)
    assert torch.equal(hidden, forward.hidden_states(tiny.llama(), text.tokens))


def test_the_layers_before_are_not_run_again(text: Text, monkeypatch: pytest.MonkeyPatch):
    model = tiny.llama()
    runs = {0: 0, 1: 0}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: runs.update({index: runs[index] + 1}))
    ours = quantized(tiny.llama, text)
    monkeypatch.setattr(forward, "head_weight", lambda m: m.lm_head.weight)  # runs the model to check its logits
    one_layer_on(model, ours, replace(text, batch=6), lambda _: None)
    assert runs == {0: 1 + 1, 1: 1 + 2}  # once for the teacher, then layer 0 once, layer 1 after it and alone


def test_the_chunk_changes_nothing(text: Text, monkeypatch: pytest.MonkeyPatch):
    ours = quantized(tiny.llama, text)
    whole = one_layer_on(tiny.llama().double(), ours, text, lambda _: None)
    monkeypatch.setattr(sensitivity, "CHUNK", 7)
    assert one_layer_on(tiny.llama().double(), ours, text, lambda _: None) == pytest.approx(whole, rel=1e-9)
