"""What the unit tests share: a tiny random model in its folder, some tokens, one calibrated model. All of it is read-only."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a library that would reach for the network

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from pipeline.calibration import calibrate
from pipeline.corpus import valid_mask
from pipeline.quant.model import QuantizedModel
from tests import tiny

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its tokenizer in Hugging Face layout."""
    return tiny.save(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """int64 [6, 20], no special token among them."""
    return torch.randint(3, 259, (6, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def lengths() -> Tensor:
    """Valid tokens of each of `tokens`, ragged."""
    return torch.tensor([20, 7, 20, 13, 2, 20])


@pytest.fixture(scope="session")
def valid(lengths: Tensor) -> Tensor:
    """bool [6, 20]."""
    return valid_mask(lengths, 20)


@pytest.fixture(scope="session")
def calibrated(tokens: Tensor, valid: Tensor) -> QuantizedModel:
    """The tiny model after GPTQ: 4-bit weights, 16-bit activations, with the latent weights that training starts from."""
    model = tiny.llama()
    return calibrate(model, tokens, valid, "gptq", (4, 16), {}, 4, "float32", lambda: None)[0]
