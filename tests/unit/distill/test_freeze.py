import pytest
import torch

from pipeline.distill.freeze import frozen_rows
from pipeline.knobs.freezing import FREEZE_POLICIES, terms
from pipeline.models import layout
from pipeline.models.layout import Linear
from tests import tiny
from tests.families import family

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
    return layout.linears(tiny.llama())


@pytest.mark.parametrize("policy", FREEZE_POLICIES)
def test_a_policy_freezes_its_projections_in_every_layer(policy: str, linears: list[Linear]):
    expected = {linear.name for linear in linears if linear.name.rsplit(".", 1)[-1] in PROJECTIONS[policy]}
    assert len(expected) == 2 * len(PROJECTIONS[policy])
    assert frozen_rows(policy, linears) == dict.fromkeys(expected)


@pytest.mark.parametrize("policy", FREEZE_POLICIES)
@pytest.mark.parametrize("name", ["phi3", "gpt-neox"])
def test_of_a_fused_projection_a_policy_freezes_the_rows_of_its_parts(name: str, policy: str):
    """Phi-3 holds queries, keys and values one after the other (two key heads to four of queries), GPT-NeoX by head."""
    size, heads = 8, range(4)
    rows = {
        "phi3": {"q": range(32), "k": range(32, 48), "v": range(48, 64), "gate": range(64), "up": range(64, 128)},
        "gpt-neox": {
            part: [3 * size * head + size * i + j for head in heads for j in range(size)]
            for i, part in enumerate("qkv")
        },
    }[name]
    roles = set(FREEZE_POLICIES[policy])
    fused = layout.linears(family(name))
    for linear in fused:
        parts = set(linear.parts())
        if policy == "mlp" and name == "gpt-neox":
            continue
        frozen = frozen_rows(policy, fused)
        if not parts & roles:
            assert linear.name not in frozen
        elif parts <= roles:
            assert frozen[linear.name] is None
        else:
            expected = sorted(row for part in parts & roles for row in rows[part])
            assert frozen[linear.name].tolist() == expected
            assert frozen[linear.name].dtype == torch.int64


def test_patterns_freeze_whole_linears(linears: list[Linear]):
    frozen = frozen_rows(["model.layers.0.*", "*.1.mlp.down_proj"], linears)
    assert frozen == dict.fromkeys([*(x.name for x in linears if x.layer == 0), "model.layers.1.mlp.down_proj"])
    fused = frozen_rows(["*.qkv_proj"], layout.linears(family("phi3")))
    assert fused == dict.fromkeys(f"model.layers.{i}.self_attn.qkv_proj" for i in (0, 1))


def test_an_unknown_policy_is_answered_with_all_of_them(linears: list[Linear]):
    with pytest.raises(ValueError, match="unknown freeze policy 'qkvv'; did you mean 'qkv'") as caught:
        frozen_rows("qkvv", linears)
    assert ", ".join(FREEZE_POLICIES) in str(caught.value)


def test_a_role_that_the_model_lacks_is_named_with_what_it_has():
    fused = [Linear("h.0.c_attn", 0, "other"), Linear("h.0.out_proj", 0, "o")]
    with pytest.raises(ValueError, match=r"'qkv' needs linears of the roles \['k', 'q', 'v'\]") as caught:
        frozen_rows("qkv", fused)
    assert "h.*.c_attn (other)" in str(caught.value)
    with pytest.raises(ValueError, match=r"'mlp' needs linears of the roles \['gate'\]"):
        frozen_rows("mlp", layout.linears(family("gpt-neox")))


def test_every_pattern_that_matches_nothing_is_named(linears: list[Linear]):
    with pytest.raises(ValueError, match=r"no linear matches '\*\.attn\.\*'; no linear matches 'h\.lm_head'"):
        frozen_rows(["*.attn.*", "*.q_proj", "h.lm_head"], linears)


def test_freezing_everything_is_refused(linears: list[Linear]):
    with pytest.raises(ValueError, match="freezes all 14 linears"):
        frozen_rows(["*"], linears)


def test_all_of_a_fused_projection_but_one_part_leaves_something_to_train():
    """Nothing else is quantized, and yet the queries learn."""
    fused = [linear for linear in layout.linears(family("phi3")) if linear.role == "qkv"]
    kept = [Linear(x.name, x.layer, x.role, x.rows) for x in fused]
    assert {name: len(rows) for name, rows in frozen_rows("v", kept).items()} == dict.fromkeys(
        (x.name for x in kept), 16
    )
    with pytest.raises(ValueError, match="freezes all 2 linears"):
        frozen_rows("qkv", kept)


def names(linears: list[Linear], *projections: tuple[str, int]) -> set[str]:
    return {x.name for x in linears if (x.name.rsplit(".", 1)[-1].removesuffix("_proj"), x.layer) in projections}


def test_terms_of_roles_layers_and_patterns_add_up():
    four = layout.linears(tiny.llama(layers=4))
    for policy, expected in {
        "q,k": [(role, layer) for role in "qk" for layer in range(4)],
        "ov@0-1": [(role, layer) for role in "ov" for layer in (0, 1)],
        "ov@2-": [(role, layer) for role in "ov" for layer in (2, 3)],
        "v@3": [("v", 3)],
        "o@0, v@1-2 ,*.down_proj@3": [("o", 0), ("v", 1), ("v", 2), ("down", 3)],
        "none": [],
        "none,gate": [("gate", layer) for layer in range(4)],
    }.items():
        assert set(frozen_rows(policy, four)) == names(four, *expected), policy
        assert frozen_rows(policy.split(","), four) == frozen_rows(policy, four)


def test_of_a_fused_projection_each_layer_has_its_own_rows():
    frozen = frozen_rows("v@0,qk@1,*.down_proj@0", layout.linears(family("phi3")))
    first, second = (frozen[f"model.layers.{i}.self_attn.qkv_proj"] for i in (0, 1))
    assert first.tolist() == [*range(48, 64)]
    assert second.tolist() == [*range(48)]
    assert frozen["model.layers.0.mlp.down_proj"] is None
    assert len(frozen) == 3


def test_a_role_that_no_layer_of_a_term_has_quantized_is_named(linears: list[Linear]):
    """The scheme may have left those layers in float: freezing them there would say nothing."""
    rest = [linear for linear in linears if linear.layer == 1]
    with pytest.raises(ValueError, match=r"'ov@0' needs linears of the roles \['o', 'v'\], which none of its layers"):
        frozen_rows("ov@0", rest)
    assert frozen_rows("ov@0-1", rest) == dict.fromkeys(names(rest, ("o", 1), ("v", 1)))


def test_layers_that_the_model_lacks_are_named(linears: list[Linear]):
    with pytest.raises(ValueError, match=r"'ov@0-7' names layers beyond the model's last, 1; 'q@5' names layers"):
        frozen_rows("ov@0-7,q@5,k@1-", linears)
    with pytest.raises(ValueError, match=r"no linear matches '\*\.1\.mlp\.\*@0'"):
        frozen_rows("*.1.mlp.*@0", linears)


def test_every_term_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="unknown freeze policy 'vo'") as caught:
        terms("vo,ov@,ov@a,ov@5-2,auto,q")
    for part in ("did you mean 'ov'", "'ov@' has no layers", "'ov@a' has no layers", "'ov@5-2' ends", "'auto' stands"):
        assert part in str(caught.value)
