"""Static ranges against torch.quantile and brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.calibration.observers import BINS, FEW, OBSERVERS, SHARES, Observed, static_quantizer
from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import STEP_DTYPE
from pipeline.quant.grid import Grid, Step
from tests.unit.quant.strategies import ACTIVATION_BITS, SEEDS, grids, matrices, random

HEAVY = random(0, 20000).pow(3)


def observed(*batches: Tensor) -> Observed:
    observation = Observed()
    for x in batches:
        observation.see_range(x)
    for x in batches:
        observation.see_values(x)
    return observation


def static_step(observation: Observed, scheme: Activations) -> Step:
    """Of the first of its grids."""
    grid_step = static_quantizer(observation, scheme).step
    assert grid_step is not None
    return grid_step


def step(scheme: Activations, *batches: Tensor) -> Step:
    return static_step(observed(*batches), scheme)


def squared_error(x: Tensor, scheme: Activations, grid_step: Step) -> float:
    grid = Grid(scheme.bits, scheme.symmetric)
    return float((grid.dequantize(grid.quantize(x, grid_step), grid_step).double() - x.double()).square().sum())


@pytest.mark.parametrize("observer", OBSERVERS)
@given(matrices(rows=12), SEEDS, st.sampled_from(ACTIVATION_BITS), st.booleans())
@settings(max_examples=100)
def test_batches_are_as_good_as_all_at_once(observer: str, x: Tensor, seed: int, bits: int, symmetric: bool):
    scheme = Activations(bits, symmetric, False, observer, 90.0)
    batches = x.split([1 + seed % len(x), len(x) - 1 - seed % len(x)]) if seed % len(x) < len(x) - 1 else (x,)
    together, apart = observed(x), observed(*batches)
    assert torch.equal(together.counts, apart.counts)
    assert together.counts.sum() == (x.numel() if x.amax() > x.amin() else 0)
    assert all(map(torch.equal, static_step(together, scheme), static_step(apart, scheme)))


@given(matrices(), grids(ACTIVATION_BITS))
@settings(max_examples=300)
def test_minmax_holds_all_that_was_seen(x: Tensor, grid: Grid):
    grid_step = step(Activations(grid.bits, grid.symmetric, observer="minmax"), x)
    assert all(map(torch.equal, grid_step, grid.step(x.min(), x.max(), torch.float32)))
    error = (grid.dequantize(grid.quantize(x, grid_step), grid_step) - x).abs().max()
    assert error <= 0.5 * grid_step.scale * (1 + 1e-2)


def held_out(ordered: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The two values between which torch interpolates this quantile."""
    return tuple(torch.quantile(ordered, share, interpolation=way) for way in ("lower", "higher"))  # type: ignore[return-value]


def range_of(grid_step: Step, grid: Grid) -> tuple[Tensor, Tensor]:
    low, high = ((code - grid_step.zero.double()) * grid_step.scale.double() for code in grid.range)
    return (-high, high) if grid.symmetric else (low, high)


def percentile_range(x: Tensor, percentile: float, symmetric: bool) -> tuple[Tensor, Tensor]:
    scheme = Activations(16, symmetric, False, "percentile", percentile)
    return OBSERVERS["percentile"](observed(x), scheme, Grid(16, symmetric))


PERCENTILES = st.sampled_from([60.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0])


@given(SEEDS, st.integers(2, 3000), PERCENTILES, st.sampled_from([1, 3]), st.sampled_from([1e-3, 1.0, 1e4]))
@settings(max_examples=300)
def test_a_symmetric_percentile_is_the_quantile_of_the_magnitudes(
    seed: int, count: int, percentile: float, power: int, spread: float
):
    """To within a bin, and on its far side, so that the share is held."""
    x = random(seed, count).pow(power) * spread
    least, greatest = percentile_range(x, percentile, True)
    lower, upper = held_out(x.abs(), percentile / 100)
    bin_width = float(x.max() - x.min()) / BINS
    assert least == -greatest
    assert lower - 0.01 * bin_width <= greatest <= upper + 1.01 * bin_width
    assert (x.abs() <= greatest + 0.01 * bin_width).float().mean() >= percentile / 100 - 1e-6


@given(SEEDS, st.integers(2, 3000), PERCENTILES, st.sampled_from([1, 3]), st.sampled_from([-2.0, 0.0, 5.0]))
@settings(max_examples=300)
def test_an_asymmetric_percentile_leaves_out_as_much_at_either_end(
    seed: int, count: int, percentile: float, power: int, middle: float
):
    x = random(seed, count).pow(power) + middle
    least, greatest = percentile_range(x, percentile, False)
    bin_width = float(x.max() - x.min()) / BINS
    for end, values in ((greatest, x), (-least, -x)):
        lower, upper = held_out(values, (1 + percentile / 100) / 2)
        assert lower - 0.01 * bin_width <= end <= upper + 1.01 * bin_width
        assert (values <= end + 0.01 * bin_width).float().mean() >= (1 + percentile / 100) / 2 - 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_hundred_percent_is_all_that_was_seen(symmetric: bool):
    for x in (HEAVY, HEAVY.abs(), random(1, 100) - 7):
        everything = step(Activations(16, symmetric), x)
        assert all(map(torch.equal, step(Activations(16, symmetric, False, "percentile", 100.0), x), everything))


@pytest.mark.parametrize(("count", "percentile"), [(1000, 99.9), (10000, 99.99), (100, 99.0), (200, 99.5)])
def test_exactly_the_share_that_is_asked_for_is_left_out(count: int, percentile: float):
    """One value, here the outlier, where 99.9 / 100 * 1000 is a little over 999."""
    x = torch.cat([torch.linspace(-1, 1, count - 1), torch.tensor([100.0])])
    least, greatest = percentile_range(x, percentile, True)
    assert 1 <= greatest <= 1.02
    assert least == -greatest


@given(matrices(rows=12), st.sampled_from(ACTIVATION_BITS), st.booleans())
@settings(max_examples=100)
def test_mse_never_errs_more_than_minmax_on_the_histogram(x: Tensor, bits: int, symmetric: bool):
    observation, scheme = observed(x), Activations(bits, symmetric, False, "mse")
    histogram = observation.centres.float().repeat_interleave(observation.counts.long())
    ours, minmax = (static_step(observation, Activations(bits, symmetric, False, name)) for name in ("mse", "minmax"))
    assert squared_error(histogram, scheme, ours) <= squared_error(histogram, scheme, minmax) * (1 + 1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_on_heavy_tails_mse_errs_less_than_minmax(bits: int, symmetric: bool):
    """On the values themselves, too."""
    minmax, mse = (Activations(bits, symmetric, False, name) for name in ("minmax", "mse"))
    much_less = {4: 0.5, 8: 0.97}[bits]
    assert squared_error(HEAVY, mse, step(mse, HEAVY)) < much_less * squared_error(HEAVY, minmax, step(minmax, HEAVY))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 5])
def test_mse_takes_the_best_of_all_shares_by_brute_force(bits: int, symmetric: bool):
    """Of the values themselves, whose histogram blurs them by less than a bin: near the best of 951 shares."""
    x, scheme, grid = HEAVY[:3000], Activations(bits, symmetric, False, "mse"), Grid(bits, symmetric)
    shares = torch.linspace(0.05, 1, 951)
    errors = [squared_error(x, scheme, grid.step(s * x.min(), s * x.max(), torch.float32)) for s in shares]
    assert squared_error(x, scheme, step(scheme, x)) <= 1.02 * min(errors)
    best = min(SHARES, key=lambda s: squared_error(x, scheme, grid.step(s * x.min(), s * x.max(), torch.float32)))
    assert step(scheme, x).scale == pytest.approx(float(grid.step(best * x.min(), best * x.max(), torch.float32).scale))


def test_mse_clips_the_one_outlier_and_no_more():
    """Of 20,000 values in -1 to 1 and one at 4, on 16 codes; the best range ends half a step inside, as -8 has no 8."""
    x = torch.cat([torch.linspace(-1, 1, 20000), torch.tensor([4.0])])
    top = float(step(Activations(4, True, False, "mse"), x).scale) * 7
    assert 0.9 <= top <= 1


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.0, -0.25])
def test_a_constant_comes_back_as_it_is(value: float, symmetric: bool, observer: str):
    """Zero has scale 1."""
    x, grid = torch.full((3, 4), value), Grid(8, symmetric)
    grid_step = step(Activations(8, symmetric, False, observer), x, x)
    restored = grid.dequantize(grid.quantize(x, grid_step), grid_step)
    assert restored.flatten().tolist() == pytest.approx([value] * 12, rel=1e-6)
    assert grid_step.scale == 1 or value
    assert grid_step.scale.shape == grid_step.zero.shape == ()


def test_a_bin_that_holds_more_than_float32_can_count_loses_nothing():
    """torch.histc counts in its input's dtype, which stops at 2^24."""
    x = torch.zeros(2**24 + 8, dtype=torch.bfloat16)
    x[0] = 1
    observation = observed(x)
    assert (observation.counts[0], observation.counts[-1], observation.counts.sum()) == (2**24 + 7, 1, 2**24 + 8)


def test_bins_are_equal_and_their_ends_are_what_was_seen():
    observation = observed(torch.tensor([-0.3, 0.7]))
    assert torch.equal(observation.edges[[0, -1]].float(), torch.tensor([-0.3, 0.7]))
    assert torch.allclose(observation.edges.diff(), torch.tensor(1 / BINS, dtype=torch.float64), rtol=1e-5)
    assert ((observation.edges[:-1] < observation.centres) & (observation.centres < observation.edges[1:])).all()
    assert torch.float32 == STEP_DTYPE


def with_a_sink(tokens: int, reach: float) -> Tensor:
    """[tokens, 48], of which one value in the first token reaches further than any other."""
    x = random(0, tokens, 48).clamp(-3, 3)
    x[1, 1] = 3.0
    x[0, 7] = 3.0 * reach
    return x


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_what_one_token_alone_reaches_does_not_take_the_others_resolution(bits: int, symmetric: bool):
    x, scheme = with_a_sink(64, 300.0), Activations(bits, symmetric)
    quantizer = static_quantizer(observed(x[:20], x[20:]), scheme)
    assert quantizer.step is not None
    assert quantizer.outer is not None
    assert all(map(torch.equal, quantizer.step, step(scheme, x[1:])))
    fine, coarse = (float(grid_step.scale) for grid_step in (quantizer.step, quantizer.outer))
    error = (quantizer(x) - x).abs()
    assert error[1:].max() <= 0.5 * fine * 1.01
    assert error[0].max() <= 0.5 * (fine + coarse) * 1.01
    assert coarse > 30 * fine


@pytest.mark.parametrize(("tokens", "reach"), [(64, 7.9), (int(1 / FEW) - 1, 300.0)])
def test_near_and_frequent_outliers_get_no_grid_of_their_own(tokens: int, reach: float):
    x = with_a_sink(tokens, reach)
    quantizer = static_quantizer(observed(x), Activations(16))
    assert quantizer.outer is None
    assert quantizer.step is not None
    assert torch.equal(quantizer.step.scale, step(Activations(16, observer="minmax"), x).scale)
    assert static_quantizer(observed(with_a_sink(64, 300.0)), Activations(16, observer="minmax")).outer is None
