"""What share of a decoder is quantized, and the list of what is not."""

import pytest

from pipeline.calibration.coverage import coverage
from pipeline.calibration.plan import plan
from pipeline.knobs.scheme import Override, Scheme, Weights, from_short
from tests import tiny
from tests.families import FAMILIES, family
from tests.others import MIXTURES, other

W4 = from_short("W4A16")


def test_all_of_a_llama_is_quantized():
    covered = coverage(tiny.llama(), plan(tiny.llama(), W4))
    assert (covered.share, covered.floats) == (1.0, {})
    assert str(covered) == "100.0 % of the weights in the decoder's matrices are quantized"
    covered.check(1.0)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mamba"])
def test_the_families_that_the_project_knows_leave_nothing(name: str):
    assert coverage(family(name), plan(family(name), W4)).share == 1.0


def test_mambas_small_tensors_are_named_with_their_shares():
    """Three of 4 x 64 weights each, beside 32 x 128 + 64 x 12 + 64 x 32 that are quantized; true models are wider."""
    covered = coverage(family("mamba"), plan(family("mamba"), W4))
    assert covered.share == pytest.approx(6912 / 7680)
    small = {f"backbone.layers.*.mixer.{name}": pytest.approx(256 / 7680) for name in ("dt_proj", "conv1d", "A_log")}
    assert covered.floats == small


def test_a_mixture_is_mostly_not_quantized_and_is_refused_with_the_list():
    model = other("mixtral")
    covered = coverage(model, plan(model, W4))
    attention, router, experts = 2 * 32 * 32 + 2 * 16 * 32, 6 * 32, 6 * 3 * 32 * 48
    total = attention + router + experts
    assert covered.share == pytest.approx(attention / total)
    assert covered.floats == pytest.approx(
        {
            "model.layers.*.mlp.gate": router / total,
            "model.layers.*.mlp.experts.gate_up_proj": experts * 2 / 3 / total,
            "model.layers.*.mlp.experts.down_proj": experts / 3 / total,
        }
    )
    assert covered.facts == {"coverage": covered.share, "in_float": covered.floats}
    with pytest.raises(ValueError, match=r"less than calibrate\.coverage, 0\.95") as caught:
        covered.check(0.95)
    lines = str(caught.value).splitlines()
    assert lines[0] == "9.9 % of the weights in the decoder's matrices are quantized; in float stay"
    assert [line.split(": ")[0].rpartition(".")[2] for line in lines[1:4]] == ["gate_up_proj", "down_proj", "gate"]
    assert "lower calibrate.coverage" in lines[-1]
    covered.check(0.05)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_matrix_is_quantized_or_named(name: str):
    model = other(name)
    planned = plan(model, W4)
    covered = coverage(model, planned)
    assert covered.share + sum(covered.floats.values()) == pytest.approx(1)
    assert covered.share < 0.95


def test_what_the_scheme_leaves_in_float_is_named_and_asked_for():
    model = tiny.llama()
    scheme = Scheme(Weights(4), overrides=(Override("down", Weights(0)),))
    covered = coverage(model, plan(model, scheme))
    assert covered.share == 1.0
    (entry,) = covered.floats.items()
    assert entry == ("model.layers.*.mlp.down_proj", pytest.approx(2048 / 9216))
    assert str(covered).endswith("model.layers.*.mlp.down_proj: 22.22 % (by the scheme)")
    covered.check(1.0)
