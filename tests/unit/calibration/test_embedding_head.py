"""Embedding and head: which weight gets which grid, and how it is rounded."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration import embedding_head
from pipeline.calibration.plan import plan
from pipeline.calibration.rotation import rotate
from pipeline.knobs.scheme import Activations, Override, Scheme, Weights, from_short
from pipeline.models import forward, layout
from pipeline.quant.model import QuantizedModel
from pipeline.rounding.methods import gptq, mse, rtn
from tests import tiny
from tests.families import FAMILIES, family
from tests.unit.calibration.runs import W4A16, run, tensors

EMBEDDING = "model.embed_tokens"


def vocabulary_grids(model: PreTrainedModel, scheme: Scheme) -> dict[str, Weights]:
    """What a plan gives embedding and head."""
    planned = plan(model, scheme)
    assert all(planned[linear][1] == Activations(0) for linear in planned if linear.layer < 0)
    return {linear.role: weights for linear, (weights, _) in planned.items() if linear.layer < 0}


def own_head() -> PreTrainedModel:
    return rotate(tiny.llama(), 0)


@pytest.mark.parametrize(
    ("short", "shared", "apart"),
    [
        ("W4A16", {}, {}),
        ("W4E8", {"embedding": Weights(8)}, {"embedding": Weights(8)}),
        ("W4H6", {"lm_head": Weights(6)}, {"lm_head": Weights(6)}),
        ("W4E8H6", {"embedding": Weights(8)}, {"embedding": Weights(8), "lm_head": Weights(6)}),
        ("W4E5H6", {"embedding": Weights(6)}, {"embedding": Weights(5), "lm_head": Weights(6)}),
        (
            "W4E6H6g16",
            {"embedding": Weights(6, group=16)},
            {"embedding": Weights(6), "lm_head": Weights(6, group=16)},
        ),
        (
            "W4E6g8H6g16",
            {"embedding": Weights(6, group=8)},
            {"embedding": Weights(6, group=8), "lm_head": Weights(6, group=16)},
        ),
    ],
)
def test_a_weight_that_embedding_and_head_share_has_the_finer_grid(
    short: str, shared: dict[str, Weights], apart: dict[str, Weights]
):
    assert vocabulary_grids(tiny.llama(), from_short(short)) == shared
    assert vocabulary_grids(own_head(), from_short(short)) == apart


def test_a_shared_weight_stays_one_where_both_are_quantized(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    quantized = run(tokens, valid, "gptq", from_short("W4E8H6"), model).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    assert quantized.schemes[EMBEDDING] == Weights(8)
    assert not any("lm_head" in name or EMBEDDING in name for name in (*quantized.floats, *quantized.latent))
    assert "lm_head" not in quantized.codes
    assert_rounded(quantized, EMBEDDING, mse(tiny.llama().model.embed_tokens.weight, None, Weights(8)))
    assert torch.equal(model.lm_head.weight, quantized.weight(EMBEDDING))


@pytest.mark.parametrize(("short", "coded", "kept"), [("W4E8", EMBEDDING, "lm_head"), ("W4H8", "lm_head", EMBEDDING)])
def test_a_shared_weight_is_parted_where_one_of_the_two_stays_in_float(
    tokens: Tensor, valid: Tensor, short: str, coded: str, kept: str
):
    model, teacher = tiny.llama(), tiny.llama()
    quantized = run(tokens, valid, "rtn", from_short(short), model).model
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    assert torch.equal(quantized.floats[f"{kept}.weight"], teacher.model.embed_tokens.weight.half())
    assert coded not in quantized.latent  # it does not learn
    assert_rounded(quantized, coded, rtn(teacher.model.embed_tokens.weight, None, Weights(8)))
    again = tiny.llama()
    quantized.put_into(again)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), again.parameters(), strict=True))


def test_nothing_of_them_is_quantized_unless_it_is_asked_for(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    quantized = run(tokens, valid, "rtn", W4A16, model).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any("lm_head" in name for name in (*quantized.codes, *quantized.floats))
    everything = Scheme(Weights(4), overrides=(Override("*", Weights(8)),))
    assert vocabulary_grids(own_head(), everything) == {}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_gptq_rounds_the_head_on_what_the_quantized_layers_hand_it(name: str, tokens: Tensor, valid: Tensor):
    model, scheme = family(name), dataclasses.replace(from_short("W4H5"), head=Weights(5, group=16))
    head = layout.head(model)
    assert head is not None
    before = model.get_submodule(head.name).weight.clone()
    quantized = run(tokens, valid, "gptq", scheme, model).model
    read = forward.hidden_states(model, tokens)[valid]
    expected = gptq(before, read.T @ read, Weights(5, group=16))
    agree = (quantized.codes[head.name] == expected.codes).float().mean()
    assert agree > 0.99  # sums in another order
    torch.testing.assert_close(quantized.steps[head.name].scale, expected.step.scale, rtol=0.1, atol=0)
    assert torch.equal(model.get_submodule(head.name).weight, quantized.weight(head.name))
    nearest = rtn(before, None, Weights(5, group=16)).weight
    errors = [((weight - before) @ read.T).norm() for weight in (quantized.weight(head.name), nearest)]
    assert errors[0] < errors[1]


def test_rows_are_rounded_alike_however_many_at_once(tokens: Tensor, valid: Tensor, monkeypatch: pytest.MonkeyPatch):
    scheme = from_short("W4E4g8H4")
    whole = run(tokens, valid, "gptq", scheme, own_head()).model
    monkeypatch.setattr(embedding_head, "ROWS", 50)
    parts = run(tokens, valid, "gptq", scheme, own_head()).model
    assert tensors(parts).keys() == tensors(whole).keys()
    assert torch.equal(parts.weight(EMBEDDING), whole.weight(EMBEDDING))
    same = (parts.codes["lm_head"] == whole.codes["lm_head"]).float().mean()
    assert same > 0.99  # products of other shapes sum in another order


def test_what_the_head_reads_must_be_finite(tokens: Tensor, valid: Tensor):
    model = own_head()
    model.model.layers[-1].mlp.down_proj.weight[3] = 1e38  # its outputs leave float32's range
    with pytest.raises(ValueError, match="the input of lm_head is not finite on the calibration tokens"):
        run(tokens, valid, "gptq", from_short("W4E8H8"), model)


def assert_rounded(quantized: QuantizedModel, name: str, expected) -> None:
    assert torch.equal(quantized.codes[name], expected.codes)
    assert torch.equal(quantized.steps[name].scale, expected.step.scale)
