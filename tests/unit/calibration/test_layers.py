"""One layer at a time against the hidden states and the linears' inputs of a whole forward."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.layers import Inputs, Runner
from pipeline.calibration.observers import BINS
from pipeline.models import forward, layout
from tests import tiny
from tests.families import family


def start(model: PreTrainedModel, tokens: Tensor, valid: Tensor, batch: int = 4, dtype: str = "float32") -> Runner:
    return Runner.start(model, tokens, valid, batch, dtype)


def of_layer(model: PreTrainedModel, index: int) -> list[layout.Linear]:
    return [linear for linear in layout.linears(model) if linear.layer == index]


def rows_read(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What each linear reads at valid positions in a whole forward: float64 [tokens, in]."""
    rows: dict[str, Tensor] = {}

    def see(linear: layout.Linear, x: Tensor) -> None:
        rows[linear.name] = x.flatten(0, -2)[valid.flatten()].double()

    handles = forward.on_layer_inputs(model, layout.linears(model), see)
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("width", [1, 3, 4, 7, 32, 33])
def test_inputs_are_the_sums_over_all_rows_that_were_added(width: int):
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    x[:, 0] = 0
    inputs = Inputs.empty(width)
    for part in x.split([1, 20, 0, 29]):
        if len(part):
            inputs.add(part)
    inputs.finish()
    torch.testing.assert_close(inputs.hessian, (x.double().T @ x.double()).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(inputs.hessian, inputs.hessian.T)
    assert torch.equal(inputs.absmax, x.abs().amax(dim=0))
    torch.testing.assert_close(inputs.mean_abs, x.double().abs().mean(dim=0).float())
    assert inputs.tokens == 50


@pytest.mark.parametrize("batch", [1, 4, 6])
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "falcon-rw"])
def test_layer_by_layer_is_the_whole_forward(tokens: Tensor, valid: Tensor, name: str, batch: int):
    """A sliding window in some of the layers included, and position biases."""
    model = family(name)
    layers = layout.decoder_layers(model)[1]
    expected: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: expected.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    runner = start(model, tokens, valid, batch)
    for index, layer in enumerate(layers):
        runner.advance(layer, of_layer(model, index), set())
        torch.testing.assert_close(torch.cat(runner.states), expected[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "stablelm-2", "opt", "mamba"])
def test_gathered_inputs_are_those_of_a_whole_forward(tokens: Tensor, valid: Tensor, name: str):
    model = family(name)
    expected = rows_read(model, tokens, valid)
    runner = start(model, tokens, valid)
    for index, layer in enumerate(layout.decoder_layers(model)[1]):
        group = of_layer(model, index)
        gathered = runner.gather(layer, group)
        assert gathered.keys() == {linear.name for linear in group}
        for linear, inputs in gathered.items():
            x = expected[linear]
            near = {"rtol": 1e-3, "atol": 1e-4 * float(x.abs().max())}
            assert inputs.tokens == int(valid.sum())
            torch.testing.assert_close(inputs.hessian.double(), x.T @ x, rtol=1e-3, atol=1e-4 * float((x.T @ x).max()))
            torch.testing.assert_close(inputs.absmax.double(), x.abs().amax(dim=0), **near)
            torch.testing.assert_close(inputs.mean_abs.double(), x.abs().mean(dim=0), **near)
        runner.advance(layer, group, set())


def test_linears_that_read_the_same_tensor_share_their_inputs(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    group = of_layer(model, 0)
    gathered = start(model, tokens, valid).gather(layout.decoder_layers(model)[1][0], group)
    distinct = [
        [linear.role for linear in group if gathered[linear.name] is shared]
        for shared in {id(i): i for i in gathered.values()}.values()
    ]
    assert distinct == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]


@pytest.mark.parametrize("name", ["llama", "falcon-7b", "mamba"])
def test_ranges_and_counts_are_those_of_the_valid_rows(tokens: Tensor, valid: Tensor, name: str):
    model = family(name)
    expected = rows_read(model, tokens, valid)
    runner = start(model, tokens, valid)
    group = of_layer(model, 0)
    counted = {group[0].name, group[-1].name}
    observations = runner.advance(layout.decoder_layers(model)[1][0], group, counted)
    assert observations.keys() == {linear.name for linear in group}
    for linear, observed in observations.items():
        x = expected[linear]
        assert observed.least.item() == pytest.approx(x.min().item(), rel=1e-4, abs=1e-6)
        assert observed.greatest.item() == pytest.approx(x.max().item(), rel=1e-4, abs=1e-6)
        if linear in counted:
            assert observed.counts.sum() == x.numel()
            step = (observed.greatest - observed.least).double() / BINS
            mean = (observed.counts * observed.centres).sum() / x.numel()
            assert abs(mean - x.mean()) <= step
        else:
            assert not observed.counts.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forward_runs_under_the_autocast_that_is_asked_for(tokens: Tensor, valid: Tensor, dtype: str):
    model = tiny.llama()
    runner = start(model, tokens, valid, dtype=dtype)
    kinds: list[torch.dtype] = []
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    runner.gather(layout.decoder_layers(model)[1][0], of_layer(model, 0))
    assert set(kinds) == {forward.torch_dtype(dtype)}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("pass_name", ["gather", "advance"])
def test_an_input_that_is_not_finite_is_refused_with_its_linear(
    tokens: Tensor, valid: Tensor, pass_name: str, value: float
):
    model = tiny.llama()
    runner = start(model, tokens, valid)
    runner.states[1][2, 7, 3] = value
    layer, group = layout.decoder_layers(model)[1][0], of_layer(model, 0)
    with pytest.raises(ValueError, match=r"the input of model\.layers\.0\.self_attn\.q_proj is not finite"):
        runner.gather(layer, group) if pass_name == "gather" else runner.advance(layer, group, set())
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_one_sequence_alone_will_do(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    runner = start(model, tokens[:1], valid[:1])
    gathered = runner.gather(layout.decoder_layers(model)[1][0], of_layer(model, 0))
    assert gathered["model.layers.0.self_attn.q_proj"].tokens == 20
