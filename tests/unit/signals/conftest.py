"""A float model in double precision and two models quantized from it, probed once."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options as Calibration
from pipeline.knobs.scheme import Weights, from_short
from pipeline.losses.chunked import LossWeights
from pipeline.quant.model import QuantizedModel
from pipeline.signals.labels import Text
from pipeline.signals.probe import Options, Signals, Variant, probe
from tests import tiny

WEIGHTS = LossWeights(0.5, 0.5, 1.0, 16)


def load_float() -> PreTrainedModel:
    return tiny.llama().double()


def quantized_model(quantized: QuantizedModel, load: Callable[[], PreTrainedModel] = load_float) -> PreTrainedModel:
    """The float model with a quantized one's numbers."""
    model = load()
    quantized.put_into(model)
    return model


def variant(quantized: QuantizedModel, rescaled: bool = False, rotation: int | None = None) -> Variant:
    """A variant that hands out the model, as it is loaded: without latent weights."""
    return Variant(lambda: replace(quantized, latent={}), rescaled, rotation)


def run(variants: dict[str, QuantizedModel], text: Text, **options: object) -> Signals:
    """The signals of double-precision models."""
    chosen = Options(**{"weights": WEIGHTS, **options})  # type: ignore[arg-type]
    named = {name: variant(quantized) for name, quantized in variants.items()}
    return probe(load_float(), load_float, named, text, chosen, lambda _: None)


@pytest.fixture(scope="session")
def text(tokens: Tensor, valid: Tensor) -> Text:
    return Text(tokens, valid, 4)


@pytest.fixture(scope="session")
def kv_quantized(tokens: Tensor, valid: Tensor) -> QuantizedModel:
    """The tiny model with 3-bit weights, 8-bit activations, KV cache and head, rounded to nearest."""
    options = Calibration("rtn", {}, batch=4, measure=False)
    scheme = replace(from_short("W3A8KV8"), head=Weights(8))
    return calibrate(tiny.llama(), tokens, valid, scheme, options, None, lambda: None).model


@pytest.fixture(scope="session")
def variants(calibrated: QuantizedModel, kv_quantized: QuantizedModel) -> dict[str, QuantizedModel]:
    return {"ptq": calibrated, "rtn": kv_quantized}


@pytest.fixture(scope="session")
def signals(variants: dict[str, QuantizedModel], text: Text) -> Signals:
    return run(variants, text, sensitivity_sequences=2, widths=range(2, 9))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
