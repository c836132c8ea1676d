"""Rotating the residual stream: an orthogonal matrix, the same function, and weights that are easier to round."""

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration import rotation as rotation_module
from pipeline.calibration.hadamard import paley, random_rotation, sylvester
from pipeline.calibration.probing import Stream
from pipeline.calibration.rotation import rotate, unturned
from pipeline.knobs.scheme import Weights
from pipeline.models import forward, layout
from pipeline.quant.model import QuantizedModel, float_tensors
from pipeline.rounding.methods import rtn
from tests import tiny
from tests.families import FAMILIES, family
from tests.others import MIXTURES, other
from tests.unit.calibration.runs import run

WIDTHS = [2, 7, 32, 96, 576, 960, 2048]


def matrix(width: int, seed: int = 0) -> Tensor:
    return random_rotation(width, seed).turn(torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_is_orthogonal_and_leaves_the_ones_alone(width: int):
    rotation = matrix(width)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation.sum(dim=0), torch.ones(width, dtype=torch.float64), rtol=0, atol=1e-12)


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
    hadamard = paley(size)
    assert hadamard is not None
    torch.testing.assert_close(hadamard @ hadamard.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(hadamard.abs(), torch.full_like(hadamard, size**-0.5))


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
    logits = rotate(model, 0)(input_ids=tokens, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    weights = {f"{linear.name}.weight" for linear in layout.linears(model)}
    unmoved = {key for key in weights if torch.equal(model.get_parameter(key), before[key])}
    assert unmoved == {key for key in weights if "x_proj" in key}  # Mamba's, which neither reads nor writes the stream
    for norm in (module for module in model.modules() if type(module).__name__.endswith("RMSNorm")):
        if norm.weight.numel() == model.config.hidden_size:
            assert norm.weight.unique().numel() == 1


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bloom"])
def test_the_last_hidden_states_of_a_rotated_model_come_back(tokens: Tensor, name: str):
    """With the last norm's weights, which the head has now, and its bias; and so do gradients."""
    model = family(name)
    expected, back = forward.hidden_states(model, tokens), unturned(model, 0)
    states = forward.hidden_states(rotate(model, 0), tokens)
    assert (states - expected).abs().max() > 0.1 * expected.abs().max()
    assert (back(states) - expected).abs().max() <= 1e-4 * expected.abs().max()
    exact = states.double().requires_grad_()
    assert torch.autograd.gradcheck(back, exact[:1, :2])


def same(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    """Whether a model has exactly these parameters, each under every name that it had."""
    now = dict(model.named_parameters(remove_duplicate=False))
    return now.keys() == before.keys() and all(torch.equal(now[name], values) for name, values in before.items())


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters(remove_duplicate=False)}


INNER = ("_norm", "layernorm.weight", "q_b_proj", "kv_b_proj")  # of what neither reads nor writes the stream


@pytest.mark.parametrize("name", [*MIXTURES, "starcoder2", "olmo", "cohere"])
def test_experts_routers_and_linears_of_any_name_are_rotated(tokens: Tensor, name: str):
    """Experts in one tensor with inputs last or outputs last, their biases, routers, Starcoder's c_proj."""
    model = other(name)
    before, expected = parameters(model), model(input_ids=tokens, use_cache=False).logits
    logits = rotate(model, 0)(input_ids=tokens, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    for key, values in before.items():
        if values.ndim > 1 and not any(part in key for part in INNER) and not key.endswith("gate_up_proj_bias"):
            assert not torch.allclose(model.get_parameter(key), values, atol=0.01), key


def test_a_rotated_expert_is_its_weight_times_the_rotation():
    """Against the matrix itself, in float64: inputs of Mixtral's gate and up, outputs of its down."""
    plain, turned, by = other("mixtral"), rotate(other("mixtral"), 3), matrix(32, 3)
    layer, rotated = plain.model.layers[0], turned.model.layers[0]
    level = layer.post_attention_layernorm.weight.double() / rotated.post_attention_layernorm.weight.double()
    for name in ("gate_up_proj", "down_proj"):
        old, new = (getattr(block.mlp.experts, name).double() for block in (layer, rotated))
        expected = (old * level) @ by if name == "gate_up_proj" else (old.mT @ by).mT
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2", r"layers\.\*\.post_attention_layernorm, model\.layers\.\*\.post_feedforward_layernorm"),
        ("gemma3", r"layers\.\*\.post_attention_layernorm, model\.layers\.\*\.post_feedforward_layernorm"),
        ("glm4", r"layers\.\*\.post_self_attn_layernorm, model\.layers\.\*\.post_mlp_layernorm"),
        ("olmo2", r"other than a norm reads the stream, .*post_attention_layernorm"),
        ("gemma4", "a norm stands between"),
        ("opt-350m", r"its embeddings have 16 channels, and its layers give \[32\]"),
        ("bloom", "word_embeddings_layernorm"),
    ],
)
def test_what_stands_in_the_way_is_named_in_a_line_and_the_model_stays_as_it_was(name: str, reason: str):
    model = family(name) if name == "bloom" else other(name)
    before, tied = parameters(model), model.config.tie_word_embeddings
    with pytest.raises(ValueError, match=rf"does not allow its residual stream to be rotated \(.*{reason}") as caught:
        rotate(model, 0)
    assert "\n" not in str(caught.value)
    assert same(model, before)
    assert model.config.tie_word_embeddings == tied
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "glm4"])
def test_a_norm_after_a_linear_that_weighs_all_channels_alike_stands_in_no_ones_way(tokens: Tensor, name: str):
    model = other(name, even_norms=True)
    expected = model(input_ids=tokens, use_cache=False).logits
    logits = rotate(model, 0)(input_ids=tokens, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("tie", [True, False])
def test_a_model_that_moves_once_it_is_rotated_gets_its_weights_back(tie: bool, monkeypatch: pytest.MonkeyPatch):
    """A writer that is overlooked."""
    find = rotation_module.find

    def overlooking(model: PreTrainedModel) -> Stream:
        stream = find(model)
        stream.writers = [side for side in stream.writers if "layers.1.mlp.down_proj" not in side.parameter]
        return stream

    monkeypatch.setattr(rotation_module, "find", overlooking)
    model = tiny.llama(tie=tie)
    before = parameters(model)
    with pytest.raises(ValueError, match=r"\(the logits would move by .* of the largest\)"):
        rotate(model, 0)
    assert same(model, before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie == model.config.tie_word_embeddings


def test_a_model_whose_own_code_fails_in_parts_is_refused_in_a_line():
    model = tiny.llama()

    def fail(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0][0]) != 32:
            raise RuntimeError("two\nlines")

    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=r"\(RuntimeError: two lines\)"):
        rotate(model, 0)


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
    for linear in layout.linears(model):
        if linear.role in ("q", "k", "v", "gate", "up"):
            model.get_submodule(linear.name).weight[:, 5] *= 10

    def error(turned: bool) -> float:
        """Mean squared error of the logits after rounding to nearest."""
        ours = tiny.llama(hidden=64)
        ours.load_state_dict(model.state_dict())
        ours = rotate(ours, 0) if turned else ours
        expected = ours(input_ids=tokens).logits
        for linear in layout.linears(ours):
            weight = ours.get_parameter(f"{linear.name}.weight")
            weight.copy_(rtn(weight, None, Weights(4)).weight)
        return float((ours(input_ids=tokens).logits - expected).square().mean())

    assert error(True) < error(False) / 2


def test_a_model_that_was_quantized_rotated_puts_its_numbers_into_the_plain_one(tokens: Tensor, valid: Tensor):
    quantized = run(tokens, valid, "gptq", model=rotate(tiny.llama(), 0)).model
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= quantized.floats.keys()
    plain, rotated = tiny.llama(), rotate(tiny.llama(), 0)
    quantized.put_into(plain)
    for name, values in float_tensors(rotated, set(quantized.codes)).items():
        assert torch.equal(plain.get_parameter(name), values.float())
    assert isinstance(quantized, QuantizedModel)
    assert plain.lm_head.weight is not plain.model.embed_tokens.weight
