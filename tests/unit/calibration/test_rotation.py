"""Rotating the residual stream: an orthogonal matrix, the same function, and weights that are easier to round."""

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from torch import Tensor, nn

from pipeline import models
from pipeline.calibration.rotation import paley, random_rotation, rotate, sylvester, unturned
from pipeline.quant.methods import rtn
from pipeline.quant.model import QuantizedModel, float_tensors
from pipeline.scheme import Weights
from tests import tiny
from tests.families import FAMILIES, family
from tests.unit.calibration.runs import run

WIDTHS = [2, 7, 32, 96, 576, 960, 2048]


def matrix(width: int, seed: int = 0) -> Tensor:
    return random_rotation(width, seed).turn(torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_is_orthogonal_and_leaves_the_ones_alone(width: int):
    found = matrix(width)
    torch.testing.assert_close(found @ found.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(width, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_was_turned_comes_back(width: int):
    rows = torch.randn(3, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rotation = random_rotation(width, 0)
    torch.testing.assert_close(rotation.back(rotation.turn(rows)), rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation.back(rows), rows @ matrix(width).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [576, 896, 960, 1536, 2048, 2560, 3072])
def test_no_channel_keeps_much_of_itself(width: int):
    """Of a Hadamard matrix all entries are 1 / sqrt(width); the reflection moves them a little."""
    entries = matrix(width).abs() * width**0.5
    assert float(entries.max()) < 2
    assert float((entries - 1).abs().mean()) < 0.1


@pytest.mark.parametrize("size", [1, 4, 12, 20, 28, 36, 44, 60, 68, 76, 84])
def test_paleys_matrices_are_hadamard(size: int):
    found = paley(size)
    assert found is not None
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.abs(), torch.full_like(found, size**-0.5))


def test_of_other_sizes_there_are_none():
    assert [size for size in range(2, 40) if paley(size) is not None] == [4, 8, 12, 20, 24, 28, 32, 36]


def test_a_seed_gives_one_rotation():
    assert torch.equal(matrix(96, 3), matrix(96, 3))
    assert not torch.allclose(matrix(96, 3), matrix(96, 4), atol=0.1)


@pytest.mark.parametrize("twos", range(6))
def test_hadamard_matrices_are_scipys(twos: int):
    torch.testing.assert_close(sylvester(twos) * 2 ** (twos / 2), torch.tensor(scipy_hadamard(2**twos)).double())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bloom"])
def test_a_rotated_model_says_what_it_said(tokens: Tensor, name: str):
    model = family(name)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    expected = model(input_ids=tokens, use_cache=False).logits
    found = rotate(model, 0)(input_ids=tokens, use_cache=False).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    weights = {f"{linear.name}.weight" for linear in models.linears(model)}
    unmoved = {key for key in weights if torch.equal(model.get_parameter(key), before[key])}
    assert unmoved == {key for key in weights if "x_proj" in key}  # Mamba's, which neither reads nor writes the stream
    for norm in (module for module in model.modules() if type(module).__name__.endswith("RMSNorm")):
        if norm.weight.numel() == model.config.hidden_size:
            assert norm.weight.unique().numel() == 1


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bloom"])
def test_the_last_hidden_states_of_a_rotated_model_come_back(tokens: Tensor, name: str):
    """With the last norm's weights, which the head has now, and its bias; and so do gradients."""
    model = family(name)
    expected, back = models.hidden_states(model, tokens), unturned(model, 0)
    states = models.hidden_states(rotate(model, 0), tokens)
    assert (states - expected).abs().max() > 0.1 * expected.abs().max()
    assert (back(states) - expected).abs().max() <= 1e-4 * expected.abs().max()
    exact = states.double().requires_grad_()
    assert torch.autograd.gradcheck(back, exact[:1, :2])


def test_an_embedding_that_is_normed_first_is_refused():
    with pytest.raises(ValueError, match=r"BloomForCausalLM does not allow .* \(the logits would move by .* largest\)"):
        rotate(family("bloom"), 0)


def test_a_head_parts_from_its_embedding_and_its_norm_keeps_its_size():
    plain, rotated = tiny.llama(tie=True), rotate(tiny.llama(tie=True), 0)
    assert rotated.lm_head.weight is not rotated.get_input_embeddings().weight
    assert not rotated.config.tie_word_embeddings
    for name, norm in plain.named_modules():
        if isinstance(getattr(norm, "weight", None), nn.Parameter) and norm.weight.ndim == 1:
            size = norm.weight.square().mean().sqrt()
            assert rotated.get_submodule(name).weight[0] == pytest.approx(float(size), rel=1e-3)


def test_an_outlying_channel_no_longer_costs_the_others_their_bits(tokens: Tensor):
    model = tiny.llama(hidden=64)
    for linear in models.linears(model):
        if linear.role in ("q", "k", "v", "gate", "up"):
            model.get_submodule(linear.name).weight[:, 5] *= 10

    def error(turned: bool) -> float:
        """Mean squared error of the logits after rounding to nearest."""
        ours = tiny.llama(hidden=64)
        ours.load_state_dict(model.state_dict())
        ours = rotate(ours, 0) if turned else ours
        expected = ours(input_ids=tokens).logits
        for linear in models.linears(ours):
            weight = ours.get_parameter(f"{linear.name}.weight")
            weight.copy_(rtn(weight, None, Weights(4)).weight)
        return float((ours(input_ids=tokens).logits - expected).square().mean())

    assert error(True) < error(False) / 2


def test_a_model_that_was_quantized_rotated_puts_its_numbers_into_the_plain_one(tokens: Tensor, valid: Tensor):
    found = run(tokens, valid, "gptq", model=rotate(tiny.llama(), 0)).model
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= found.floats.keys()
    plain, rotated = tiny.llama(), rotate(tiny.llama(), 0)
    found.put_into(plain)
    for name, values in float_tensors(rotated, set(found.codes)).items():
        assert torch.equal(plain.get_parameter(name), values.float())
    assert isinstance(found, QuantizedModel)
    assert plain.lm_head.weight is not plain.model.embed_tokens.weight
