import pytest

from pipeline import models
from pipeline.distill.freeze import FREEZE_POLICIES, frozen_linears
from pipeline.models import Linear
from tests import tiny

PROJECTIONS = {
    "none": [],
    "o": ["o_proj"],
    "v": ["v_proj"],
    "ov": ["o_proj", "v_proj"],
    "qk": ["q_proj", "k_proj"],
    "qkv": ["q_proj", "k_proj", "v_proj"],
    "qkvo": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
}


@pytest.fixture(scope="module")
def linears() -> list[Linear]:
    return models.linears(tiny.llama())


@pytest.mark.parametrize("policy", FREEZE_POLICIES)
def test_a_policy_freezes_its_projections_in_every_layer(policy: str, linears: list[Linear]):
    expected = {linear.name for linear in linears if linear.name.rsplit(".", 1)[-1] in PROJECTIONS[policy]}
    assert len(expected) == 2 * len(PROJECTIONS[policy])
    assert frozen_linears(policy, linears) == expected


def test_patterns_freeze_what_they_match(linears: list[Linear]):
    frozen = frozen_linears(["model.layers.0.*", "*.1.mlp.down_proj"], linears)
    assert frozen == {x.name for x in linears if x.layer == 0} | {"model.layers.1.mlp.down_proj"}


def test_an_unknown_policy_is_answered_with_all_of_them(linears: list[Linear]):
    with pytest.raises(ValueError, match="unknown freeze policy 'qkvv'; did you mean 'qkv'") as caught:
        frozen_linears("qkvv", linears)
    assert ", ".join(FREEZE_POLICIES) in str(caught.value)


def test_a_role_that_the_model_lacks_is_named_with_what_it_has():
    fused = [Linear("h.0.c_attn", 0, "other"), Linear("h.0.out_proj", 0, "o")]
    with pytest.raises(ValueError, match=r"'qkv' needs linears of the roles \['k', 'q', 'v'\]") as caught:
        frozen_linears("qkv", fused)
    assert "h.*.c_attn (other)" in str(caught.value)


def test_every_pattern_that_matches_nothing_is_named(linears: list[Linear]):
    with pytest.raises(ValueError, match=r"\['\*\.attn\.\*', 'lm_head'\]"):
        frozen_linears(["*.attn.*", "*.q_proj", "lm_head"], linears)


def test_freezing_everything_is_refused(linears: list[Linear]):
    with pytest.raises(ValueError, match="freezes all 14 linears"):
        frozen_linears(["*"], linears)
