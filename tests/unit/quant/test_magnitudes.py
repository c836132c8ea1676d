"""Whatever the size of a weight or of a tensor in float, what is stored of it is as good as its bits allow."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.knobs.scheme import Weights
from pipeline.quant import weights
from pipeline.quant.grid import SCALE_DTYPE, Grid, grouped, sqnr, stored_dtype, stored_scale
from pipeline.quant.model import QuantizedModel, float_tensors, stored_float
from pipeline.rounding.methods import ROUNDINGS
from tests.unit.quant.strategies import random

MAGNITUDES = [10.0**exponent for exponent in range(-6, 4)]  # standard deviations
LOSS = 0.25  # dB, that storing the scales may cost


def scale_free(weight: Tensor, scheme: Weights) -> float:
    """SQNR in dB of min-max rounding on scales of float32, which hold every magnitude here."""
    step = weights.weight_step(weight, scheme, torch.float32)
    return sqnr(weight, weights.dequantize(weights.quantize(weight, step, scheme), step, scheme))


@settings(max_examples=60)
@given(
    st.floats(-12, 9),
    st.sampled_from([Weights(4), Weights(8), Weights(8, group=16), Weights(3, symmetric=False, group=8)]),
)
def test_a_weight_of_any_magnitude_is_rounded_as_well_as_any_other(exponent: float, scheme: Weights):
    size = 10.0**exponent
    weight = random(0, 64, 128, spread=size)
    rounded = ROUNDINGS["rtn"](weight, None, scheme)
    assert sqnr(weight, rounded.weight) == pytest.approx(scale_free(weight, scheme), abs=LOSS)
    assert sqnr(weight, rounded.weight) == pytest.approx(scale_free(weight / size, scheme), abs=LOSS)


def test_eight_bits_of_a_small_weight_are_worth_what_they_are_elsewhere():
    """42.5 dB at a deviation of 0.0005, by scales of float16 below its least normal number."""
    weight = random(0, 512, 512, spread=0.0005)
    rounded = ROUNDINGS["rtn"](weight, None, Weights(8))
    assert rounded.step.scale.max() < torch.finfo(torch.float16).tiny
    assert stored_dtype(rounded.step.scale) == torch.float16
    assert sqnr(weight, rounded.weight) == pytest.approx(42.5, abs=0.3)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("method", ["mse", "clip", "gptq"])
def test_every_rounding_and_its_search_for_scales_does_as_well_on_any_magnitude(size: float, method: str):
    inputs = random(1, 256, 32)
    hessian, weight = inputs.T @ inputs, random(0, 24, 32)
    options = {"descent": 2} if method == "gptq" else {}
    rounded, expected = (ROUNDINGS[method](w, hessian, Weights(4), **options) for w in (weight * size, weight))
    assert sqnr(weight * size, rounded.weight) == pytest.approx(sqnr(weight, expected.weight), abs=LOSS)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_what_is_stored_of_scales_and_floats_reads_back_bit_for_bit(size: float, tmp_path: Path):
    weight = random(0, 8, 16, spread=size)
    rounded = ROUNDINGS["rtn"](weight, None, Weights(8))
    made = QuantizedModel({"a": rounded.scheme}, {"a": rounded.codes}, {"a": rounded.step})
    made.floats = {"b": stored_float(weight)}
    made.save(tmp_path / "ptq", {}, {})
    loaded, _ = QuantizedModel.load(tmp_path / "ptq")
    assert torch.equal(loaded.weight("a"), rounded.weight)
    assert torch.equal(loaded.floats["b"], made.floats["b"])
    assert loaded.floats["b"].dtype == made.floats["b"].dtype


@pytest.mark.parametrize("grid", [Grid(4), Grid(8), Grid(4, symmetric=False)])
def test_scales_of_an_ordinary_size_are_float16_though_some_outputs_are_next_to_nothing(grid: Grid):
    weight = grouped(random(0, 32, 64, spread=0.02), 0)
    weight[3] *= 1e-7
    weight[4] = 0
    assert grid.scale_dtype(*weight.aminmax(dim=-1)) == SCALE_DTYPE
    assert torch.equal(
        grid.step_of(weight).scale, grid.step(*weight.aminmax(dim=-1, keepdim=True), torch.float16).scale
    )


def test_every_float16_scale_is_stored_as_it_is_and_a_rounded_one_clips_nothing_below_its_normal_numbers():
    every = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    assert torch.equal(stored_scale(every, torch.float16), every)
    small = torch.linspace(2.0**-24, 2.0**-14, 4001)
    assert (stored_scale(small, torch.float16) >= small).all()
    assert (stored_scale(small, torch.float16) - small).max() < 2.0**-24
    assert stored_scale(torch.tensor([-1.0, 0.0, 1e-30]), torch.float16).tolist() == [2.0**-24] * 3


@pytest.mark.parametrize("size", MAGNITUDES)
def test_a_tensor_in_float_keeps_its_values_whatever_their_magnitude(size: float):
    values = random(0, 64, 64, spread=size)
    kept = stored_float(values)
    assert (kept.float() - values).norm() <= 2.0**-10 * values.norm()
    assert kept.dtype == (torch.float16 if size >= 1e-4 else torch.float32)
    assert torch.equal(stored_float(kept.float()), kept)
    assert stored_float(kept.float()).dtype == kept.dtype


@pytest.mark.parametrize("spread", [2e-8, 1e6])
def test_a_teacher_in_bfloat16_keeps_that_dtype_where_float16_has_not_the_range(spread: float):
    values = random(0, 64, 64, spread=spread).bfloat16().float()
    assert stored_float(values).dtype == torch.bfloat16
    assert torch.equal(stored_float(values).float(), values)
    assert stored_float(random(0, 64, 64).bfloat16().float()).dtype == torch.float16


def test_buffers_stay_in_their_own_dtype_and_those_that_are_not_of_the_state_stay_out():
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
            self.register_buffer("correction", torch.tensor([1e-7, 70000.0]))
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("frequencies", torch.ones(2), persistent=False)

    kept = float_tensors(nn.ModuleDict({"router": Router()}), set())
    assert {name: values.dtype for name, values in kept.items()} == {
        "router.weight": torch.float16,
        "router.correction": torch.float32,
        "router.count": torch.int64,
    }
    assert torch.equal(kept["router.correction"], torch.tensor([1e-7, 70000.0]))
