"""The plan against brute force on small cases, and its predicted losses against their formula."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.calibration.plan import plan as calibration_plan
from pipeline.knobs import params
from pipeline.knobs.scheme import Override, Scheme, Weights, from_short
from pipeline.models import layout
from pipeline.quant import weights
from pipeline.signals import plan
from pipeline.signals.plan import Curve, average_bits, choose, predicted
from tests import tiny
from tests.unit.signals.conftest import load_float

ROOT = Path(__file__).parents[3]
WIDTHS = (2, 3, 4, 6)


def curves(seed: int, count: int = 5, convex: bool = True) -> list[Curve]:
    """Linears of unequal size and importance; losses that fall by about four a bit, or in no order at all."""
    generator = torch.Generator().manual_seed(seed)

    def random() -> float:
        return float(torch.rand((), generator=generator))

    loss_curves = []
    for i in range(count):
        scale = 10 ** (2 * random())
        losses = {bits: scale * (4.0**-bits if convex else random() * 2.0**-bits) for bits in WIDTHS}
        loss_curves.append(Curve(f"l{i}", i, "q", int(1 + 20 * random()), losses))
    return loss_curves


def best(loss_curves: list[Curve], average: float) -> float:
    """The least loss of all plans within the average."""
    names = [curve.name for curve in loss_curves]
    plans = (dict(zip(names, bits, strict=True)) for bits in itertools.product(WIDTHS, repeat=len(loss_curves)))
    return min(predicted(loss_curves, p) for p in plans if average_bits(loss_curves, p) <= average + 1e-12)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(2, 7), st.booleans())
def test_it_is_the_best_plan_up_to_one_linear(seed: int, average: float, convex: bool):
    """Within what the dearest linear could still gain, and on convex curves mostly the optimum itself."""
    loss_curves = curves(seed, convex=convex)
    chosen = choose(loss_curves, average)
    assert average_bits(loss_curves, chosen) <= average + 1e-12
    lowest, ours = best(loss_curves, average), predicted(loss_curves, chosen)
    gain = max(c.losses[chosen[c.name]] - min(c.losses.values()) for c in loss_curves)
    assert lowest <= ours <= lowest + gain + 1e-12


def test_mostly_it_is_the_optimum():
    cases = [(curves(seed), average) for seed in range(20) for average in (3.0, 4.0, 5.0)]
    same = [predicted(loss_curves, choose(loss_curves, a)) <= 1.02 * best(loss_curves, a) for loss_curves, a in cases]
    assert sum(same) >= 0.7 * len(same)


@given(st.integers(0, 2**31), st.sampled_from(WIDTHS), st.booleans())
def test_it_is_never_worse_than_uniform_bits(seed: int, average: int, convex: bool):
    loss_curves = curves(seed, count=3, convex=convex)
    uniform = predicted(loss_curves, {curve.name: average for curve in loss_curves})
    assert predicted(loss_curves, choose(loss_curves, average)) <= uniform


def test_a_width_that_helps_little_by_itself_is_stepped_over():
    """From 2 to 3 bits nothing is gained here, from 2 to 4 almost all: the hull goes straight there."""
    loss_curves = [
        Curve("late", 0, "q", 10, {2: 100.0, 3: 99.9, 4: 1.0, 6: 0.5}),
        Curve("even", 0, "k", 10, {2: 8.0, 3: 4.0, 4: 2.0, 6: 1.0}),
    ]
    assert choose(loss_curves, 3.0) == {"late": 4, "even": 2}


def test_a_bit_of_a_small_linear_is_cheaper():
    """Ten linears of one weight each gain 1 for what one of ten weights gains 3 for."""
    wide = Curve("wide", 0, "q", 10, {2: 4.0, 3: 1.0})
    narrow = [Curve(f"narrow{i}", i, "k", 1, {2: 2.0, 3: 1.0}) for i in range(10)]
    assert choose([wide, *narrow], 2.5) == {"wide": 2, **{curve.name: 3 for curve in narrow}}


def test_bits_that_gain_nothing_are_not_spent():
    flat = Curve("flat", 0, "q", 10, dict.fromkeys(WIDTHS, 1.0))
    steep = Curve("steep", 0, "k", 10, {2: 4.0, 3: 3.0, 4: 2.0, 6: 1.0})
    assert choose([flat, steep], 6.0) == {"flat": 2, "steep": 6}


def test_an_average_below_the_fewest_bits_is_refused():
    with pytest.raises(ValueError, match=r"average of 1\.5 bits is below the fewest, 2"):
        choose(curves(0), 1.5)


def test_a_linear_without_a_gradient_has_no_curve():
    """Nothing says what its bits are worth, so that a plan leaves it those of the scheme."""
    model = load_float()
    schemes = {linear.name: Weights(4) for linear in layout.linears(model)}
    gradients = {name: torch.ones_like(model.get_submodule(name).weight) for name in schemes}
    indexer, *others = schemes
    gradients[indexer].zero_()
    assert [curve.name for curve in plan.curves(model, gradients, schemes, 10, WIDTHS, lambda: None)] == others


def test_the_curves_are_the_weighted_errors_of_rounding_to_nearest(signals, calibrated, text):
    """tokens / 2 * sum(g^2 dW^2), g by autograd on the whole batch in double precision."""
    model = load_float()
    linears = layout.linears(model)
    parameters = [model.get_submodule(linear.name).weight.requires_grad_(True) for linear in linears]
    counted = text.valid[:, 1:]
    logits = model(input_ids=text.tokens).logits[:, :-1][counted]
    gradients = torch.autograd.grad(functional.cross_entropy(logits, text.tokens[:, 1:][counted]), parameters)
    assert [curve.name for curve in signals.curves] == [linear.name for linear in linears]
    for curve, weight, g in zip(signals.curves, parameters, gradients, strict=True):
        assert curve.size == weight.numel()
        assert list(curve.losses) == [2, 3, 4, 5, 6, 7, 8]
        for bits, loss in curve.losses.items():
            grid = Weights(bits)  # type: ignore[arg-type]
            plain = weight.detach().float()
            step = weights.weight_step(plain, grid)
            error = weights.dequantize(weights.quantize(plain, step, grid), step, grid).double() - weight.detach()
            assert loss == pytest.approx(float(counted.sum() / 2 * (g**2 * error**2).sum()), rel=1e-5)


def test_the_plan_beats_uniform_bits_on_a_model_and_keeps_to_the_budget(signals):
    for average in (2.5, 4.0, 5.0, 7.9):
        chosen = choose(signals.curves, average)
        assert average_bits(signals.curves, chosen) <= average
        uniform = predicted(signals.curves, dict.fromkeys(chosen, int(average)))
        assert predicted(signals.curves, chosen) < 0.9 * uniform


def load_params(tmp_path: Path, scheme: object, monkeypatch: pytest.MonkeyPatch) -> Scheme:
    monkeypatch.chdir(ROOT)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"scheme": scheme}
    tree["export"]["formats"], tree["evaluate"]["format"] = ["dequantized"], "dequantized"
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    return params.load(file).scheme


SCHEMES = {
    "short": from_short("W4A16KV8"),
    "groups, asymmetric": Scheme(Weights(4, symmetric=False, group=16)),
    "with overrides of its own": Scheme(
        Weights(4), overrides=(Override("down_proj", Weights(3, group=32)), Override("q", Weights(8)))
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_params_take_the_plan_for_a_scheme_which_then_gives_each_linear_its_bits(
    signals, scheme: Scheme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen = choose(signals.curves, 4.7)
    assert len({*chosen.values()}) >= 3
    loaded = load_params(tmp_path, plan.as_scheme(scheme, signals.curves, chosen), monkeypatch)
    assert (loaded.weights, loaded.activations, loaded.kv_cache) == (
        scheme.weights,
        scheme.activations,
        scheme.kv_cache,
    )
    grids = {linear.name: grid for linear, (grid, _) in calibration_plan(tiny.llama(), loaded).items()}
    for linear in layout.linears(tiny.llama()):
        before = scheme.of(linear.name, linear.role)[0]
        assert grids[linear.name] == Weights(chosen[linear.name], before.symmetric, before.group)


def test_a_linear_that_has_its_bits_already_gets_no_override(signals):
    scheme = from_short("W4")
    chosen = dict.fromkeys((curve.name for curve in signals.curves), 4)
    assert plan.overrides(scheme, signals.curves, chosen) == []
    chosen["model.layers.1.self_attn.v_proj"] = 8
    assert plan.overrides(scheme, signals.curves, chosen) == [
        {"match": "model.layers.1.self_attn.v_proj", "weights": {"bits": 8}}
    ]


def test_losses_fall_with_bits_as_the_square_of_the_step_does(signals):
    """From 4 to 8 bits the step of a symmetric grid is 127 / 7 times smaller."""
    ratios = [curve.losses[4] / curve.losses[8] for curve in signals.curves]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) == pytest.approx((127 / 7) ** 2, rel=0.1)
