"""What ExecuTorch is refused, and what to take instead."""

import pytest
from transformers import PreTrainedModel

from pipeline.export import extras, refusals
from pipeline.export.executorch import grids
from pipeline.knobs.scheme import Activations, KVCache, Weights
from tests.families import family

UP = "model.layers.1.mlp.up_proj"


def problems(model: PreTrainedModel, scheme: Weights, signals: refusals.Signals = refusals.IN_FLOAT) -> list[str]:
    return [*refusals.problems("executorch", model, None, {UP: scheme}, signals)]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "version", lambda package: "1.5.1")


def test_a_scale_a_row_fits_with_any_inputs(installed: None):
    for inputs in (Activations(0), Activations(8, dynamic=True), Activations(16), Activations(8, symmetric=False)):
        for bits in (2, 4, 8):
            assert problems(family("llama"), Weights(bits), refusals.Signals({UP: inputs})) == []


def test_what_does_not_fit_is_told_with_the_nearest_scheme(installed: None):
    (groups,) = problems(family("llama"), Weights(4, group=16))
    assert groups.startswith("model.layers.*.mlp.up_proj: its weight has groups of 16, whose scales")
    assert groups.endswith("the nearest scheme is W4A16E8H6")
    (asymmetric,) = problems(family("llama"), Weights(4, symmetric=False))
    assert "asymmetric" in asymmetric
    (float_weight,) = problems(family("llama"), Weights(0), refusals.Signals({UP: Activations(8, dynamic=True)}))
    assert "its weight is float and its input is not" in float_weight
    (cache,) = problems(family("llama"), Weights(4), refusals.Signals({}, KVCache(8)))
    assert cache.startswith("the KV cache has 8 bits")


def test_an_odd_number_of_inputs_is_refused_for_packed_codes():
    assert [*grids._of_weight(Weights(4), Activations(0), 33)]
    assert not [*grids._of_weight(Weights(8), Activations(0), 33)]


def test_architectures_and_sliding_windows_are_refused_by_name(installed: None):
    (line,) = problems(family("mistral"), Weights(4))
    assert line == "it has a sliding window of 6 tokens, shorter than the program's 64"
    (line,) = [*refusals.problems("executorch", family("gemma"), None, {})]
    assert line.startswith("gemma models are not written for ExecuTorch; llama, mistral, qwen2, qwen3 are")


def test_without_executorch_the_command_that_brings_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grids, "problems", lambda *args: iter(()))
    monkeypatch.setattr(extras, "version", _absent)
    (line,) = problems(family("llama"), Weights(4))
    assert line.startswith("executorch, which compiles it, is not installed: `pip install")


def _absent(package: str) -> str:
    raise extras.PackageNotFoundError(package)
