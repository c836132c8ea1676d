"""What the unit tests share, all of it read-only: a tiny random model, some tokens, one calibrated model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a library that would reach for the network

import gc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.corpus.artifact import valid_mask
from pipeline.knobs.scheme import from_short
from pipeline.quant.model import QuantizedModel
from tests import tiny

ROOT = Path(__file__).parents[2]
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of a make that started the tests, for those that start one
    os.environ.pop(name, None)
torch.set_num_threads(1)  # tiny tensors gain nothing from threads, and wait for them where the machine is busy
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate.benchmarks is a path relative to the checkout."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def garbage_set_aside() -> Iterator[None]:
    """statsmodels collects garbage at each call, of all that a test process holds: half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


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
    """The tiny model after GPTQ, 4-bit weights, 16-bit activations. Training changes latent weights: copy them."""
    options = Options("gptq", {}, batch=4)
    return calibrate(tiny.llama(), tokens, valid, from_short("W4A16"), options, None, lambda: None).model


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF that gguf's own writer made."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of q's and k's rows in a GGUF: llama.cpp rotates neighbours, Hugging Face halves."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file: Path) -> Path:
    """The tiny model in float32, with a byte-level tokenizer of 259 tokens and one merge."""
    model = tiny.llama()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(259)
    known = tiny.tokenizer().get_vocab()
    vocabulary = ["<|endoftext|>", *sorted(known, key=known.__getitem__)[1:-1], "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * 3 + [1] * 256)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, parameter in model.named_parameters():
        values = parameter.numpy()
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        values = interleaved(values, heads) if heads else values
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
