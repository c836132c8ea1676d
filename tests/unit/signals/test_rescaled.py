"""Weights that AWQ or SmoothQuant rescaled are compared with the float model's in the float model's coordinates."""

import pytest
import torch

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import PTQ_METHODS, Options
from pipeline.knobs.scheme import Weights, from_short
from pipeline.models import layout
from pipeline.quant.grid import sqnr
from pipeline.rounding.methods import rtn
from pipeline.signals.probe import Options as Chosen
from pipeline.signals.probe import probe
from pipeline.signals.rescaled import factors, rescales
from tests import tiny
from tests.unit.signals.conftest import WEIGHTS, load_float, run, variant


def scaled(generator: torch.Generator, spread: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [96, 128], and factors of its rows and columns, each within a factor of `spread`."""
    weight = torch.randn(96, 128, generator=generator)
    rows, columns = (spread ** torch.rand(n, generator=generator) for n in (96, 128))
    return weight, rows[:, None] * columns


def test_exact_factors_are_found_exactly(generator: torch.Generator):
    weight, scale = scaled(generator)
    assert torch.allclose(factors(weight * scale, weight), scale, rtol=1e-4)


def test_after_quantization_they_are_found_to_a_few_percent(generator: torch.Generator):
    weight, scale = scaled(generator, 3.0)
    grid = Weights(4)
    quantized = rtn(weight * scale, None, grid).weight
    estimate = factors(quantized, weight)
    assert float((estimate / scale).log().abs().mean()) < 0.05
    assert sqnr(weight, quantized / estimate) == pytest.approx(sqnr(weight, quantized / scale), abs=0.5)


def test_rows_and_columns_of_zeros_are_left_alone(generator: torch.Generator):
    weight, scale = scaled(generator)
    weight[3], weight[:, 5] = 0, 0
    estimate = factors(weight * scale, weight)
    assert bool(estimate.isfinite().all())
    assert bool((estimate > 0).all())


def test_the_methods_that_rescale_are_known_by_name():
    assert {name for name in PTQ_METHODS if rescales(name)} == {n for n, m in PTQ_METHODS.items() if m.rescaling}
    assert not rescales("")


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_a_rescaled_model_that_computes_the_same_function_looks_like_the_float_one(method: str, text):
    """At 8 bits hardly anything is lost; outside the float model's coordinates it looks as if much were."""
    options = Options(method, {}, batch=4, measure=False)
    ours = calibrate(tiny.llama(), text.tokens, text.valid, from_short("W8"), options, None, lambda: None).model
    plain = run({"ptq": ours}, text).table
    again = probe(load_float(), load_float, {"ptq": variant(ours, True)}, text, Chosen(WEIGHTS), lambda _: None).table
    corrected, naive = (t[t.tensor == "weight"].groupby("statistic").value for t in (again, plain))
    assert corrected.min()["sqnr_db"] > 40
    assert naive.min()["sqnr_db"] < 20
    assert corrected.min()["gradient_cosine"] > 0.999
    assert naive.min()["gradient_cosine"] < 0.99
    assert corrected.sum()["first_order"] < 0.1 * naive.sum()["first_order"]


def test_the_errors_are_those_that_calibration_measured(text):
    """Against calibration's own table, which knows the rescaled float weights."""
    options = Options("awq", {}, batch=4)
    done = calibrate(tiny.llama(), text.tokens, text.valid, from_short("W4"), options, None, lambda: None)
    table = probe(
        load_float(), load_float, {"ptq": variant(done.model, True)}, text, Chosen(WEIGHTS), lambda _: None
    ).table
    ours = table[(table.tensor == "weight") & (table.statistic == "sqnr_db")].set_index("name").value
    theirs = done.errors.set_index("name").weight_sqnr
    assert len(ours) == len(layout.linears(tiny.llama()))
    assert float((ours - theirs).abs().mean()) < 1.5
