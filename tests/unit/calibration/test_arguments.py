"""What a layer is called with, by position and by name, against a whole forward."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration.layers import Runner
from pipeline.calibration.rescale import rescale
from pipeline.knobs.scheme import Weights
from pipeline.models import layout
from tests import tiny
from tests.others import DENSE, MIXTURES, POST_NORMS, other
from tests.unit.calibration.runs import run


def outputs(model: PreTrainedModel, tokens: Tensor) -> list[Tensor]:
    """What each layer gives in a whole forward."""
    states: list[Tensor] = []
    layers = layout.decoder_layers(model)[1]
    handles = [
        layer.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("name", [*MIXTURES, *POST_NORMS, *DENSE])
def test_layer_by_layer_is_the_whole_forward(name: str, tokens: Tensor, valid: Tensor):
    """Gemma 4's layers read another input each, by position; some of its layers read keys that another has made."""
    model = other(name)
    expected = outputs(model, tokens)
    runner = Runner.start(model, tokens, valid, 4, "float32")
    for layer, whole in zip(layout.decoder_layers(model)[1], expected, strict=True):
        runner.states = [runner.call(layer, index) for index in range(len(runner.states))]
        torch.testing.assert_close(torch.cat(runner.states), whole, rtol=1e-4, atol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layers_own_arguments_are_its_own_and_those_that_layers_share_are_held_once(tokens: Tensor, valid: Tensor):
    model = other("gemma4")
    first, second = layout.decoder_layers(model)[1]
    arguments = Runner.start(model, tokens, valid, 4, "float32").arguments
    assert len(arguments[first]) == len(arguments[second]) == 3
    ours, theirs = arguments[first][1], arguments[second][1]
    assert not torch.equal(ours.args[0], theirs.args[0])
    shared = [name for name, value in ours.kwargs.items() if value is not None and value is theirs.kwargs[name]]
    assert "shared_kv_states" in shared
    plain = Runner.start(tiny.llama(), tokens, valid, 4, "float32").arguments
    one, other_one = (by_batch[0].kwargs["position_embeddings"] for by_batch in plain.values())
    assert one is other_one


def test_what_comes_from_the_layers_before_is_refused(tokens: Tensor, valid: Tensor):
    """A second input of the last layer that the first one makes."""
    model = tiny.llama()
    kept: list[Tensor] = []

    def keep(layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        kept[:] = [out]

    def give(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "earlier": kept[0]}

    first, second = model.model.layers
    first.register_forward_hook(keep)
    second.register_forward_pre_hook(give, with_kwargs=True)
    with pytest.raises(
        ValueError, match=r"a layer at a time: what layer 1 is called with comes from the layers before"
    ):
        Runner.start(model, tokens, valid, 4, "float32")
    assert not any("forward" in vars(module) for module in model.modules())


class Doubling(nn.ModuleList):
    """Two layers with hidden states that are doubled on the way from one to the next, as some models mix them there."""

    def __getitem__(self, index: Any) -> Any:
        first, second = self._modules.values()
        return [first, lambda states, **kwargs: second(2 * states, **kwargs)][index]


def test_what_happens_between_the_layers_is_refused(tokens: Tensor, valid: Tensor, monkeypatch: pytest.MonkeyPatch):
    model = tiny.llama()
    layers = model.model.layers
    monkeypatch.setattr(layout, "decoder_layers", lambda _: ("model.layers", layers))
    model.model.layers = Doubling(list(layers))
    with pytest.raises(ValueError, match="something happens to its hidden states between the layers"):
        Runner.start(model, tokens, valid, 4, "float32")


def test_a_layer_that_runs_twice_or_never_is_refused(tokens: Tensor, valid: Tensor):
    model = tiny.llama(layers=3)
    model.config.num_hidden_layers = 3
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(ValueError, match="does not call its 3 layers one after the other, each once"):
        Runner.start(model, tokens, valid, 4, "float32")


def test_a_model_with_inputs_for_each_layer_is_quantized_and_rescaled(tokens: Tensor, valid: Tensor):
    model = other("gemma4")
    quantized = run(tokens, valid, "gptq", model=model).model
    assert {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)} <= quantized.codes.keys()
    model = other("gemma4")
    before = model(input_ids=tokens, use_cache=False).logits
    runner = Runner.start(model, tokens, valid, 4, "float32")
    for index, layer in enumerate(layout.decoder_layers(model)[1]):
        group = [linear for linear in layout.linears(model) if linear.layer == index]
        inputs = runner.gather(layer, group)
        schemes = {linear.name: Weights(4) for linear in group}
        rescale(runner, layer, group, inputs, schemes, "smoothquant", 0.5)
        runner.advance(layer, group, set())
    after = model(input_ids=tokens, use_cache=False).logits
    assert (after - before).abs().max() < 1e-2 * before.abs().max()
