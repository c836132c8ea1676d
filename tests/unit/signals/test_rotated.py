"""A model that was quantized from the rotated float model is compared with that one."""

import pandas as pd
from torch import Tensor

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.calibration.rotation import rotate
from pipeline.knobs.scheme import from_short
from pipeline.quant.model import QuantizedModel
from pipeline.signals import probe
from pipeline.signals.labels import Text
from tests import tiny
from tests.unit.signals.conftest import WEIGHTS, load_float, variant


def quantized(tokens: Tensor, valid: Tensor, rotation: int | None) -> QuantizedModel:
    model = tiny.llama() if rotation is None else rotate(tiny.llama(), rotation)
    return calibrate(
        model, tokens, valid, from_short("W8"), Options("rtn", {}, batch=4, measure=False), None, lambda: None
    ).model


def table(variants: dict[str, probe.Variant], text: Text) -> pd.DataFrame:
    calls: list[int] = []
    options = probe.Options(WEIGHTS, 2, range(2, 9))
    signals = probe.probe(load_float(), load_float, variants, text, options, calls.append)
    assert sum(calls) == probe.steps(load_float(), variants, text, options)
    return signals.table


def test_at_eight_bits_hardly_anything_is_lost_beside_it_and_much_beside_the_plain_one(text: Text):
    ours = quantized(text.tokens, text.valid, 3)
    rotated, naive = (table({"ptq": variant(ours, rotation=rotation)}, text) for rotation in (3, None))
    worst, plain = (t[t.statistic == "sqnr_db"].groupby("tensor").value.min() for t in (rotated, naive))
    assert worst.min() > 25
    assert plain.max() < 10
    costs, wrong = (t[t.statistic == "one_layer_kl"].value.max() for t in (rotated, naive))
    assert costs < 1e-3 < wrong


def test_each_variant_has_the_float_model_that_it_came_from(text: Text):
    models = {name: quantized(text.tokens, text.valid, rotation) for name, rotation in (("a", 3), ("b", None))}
    alone = [table({name: variant(models[name], rotation=r)}, text) for name, r in (("a", 3), ("b", None))]
    both = table({"a": variant(models["a"], rotation=3), "b": variant(models["b"])}, text)
    expected = pd.concat([alone[0], alone[1][alone[1].variant == "b"]], ignore_index=True)
    pd.testing.assert_frame_equal(both, expected)
