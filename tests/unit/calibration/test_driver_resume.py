"""A calibration that is killed goes on after its last whole layer; the same one gives the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.artifacts import contract
from pipeline.calibration import driver, rounded_layer
from pipeline.calibration.methods import PTQ_METHODS
from pipeline.knobs.scheme import Activations, KVCache, Override, Scheme, Weights
from pipeline.models import layout
from pipeline.quant.model import QuantizedModel
from tests import tiny
from tests.unit.calibration.runs import differing, run

OBSERVED = [Activations(16), *(Activations(8, False, observer=kind) for kind in ("percentile", "mse"))]
KILLED = [("rtn", OBSERVED[1]), ("gptq", OBSERVED[0]), ("awq+gptq", OBSERVED[1]), ("smoothquant", OBSERVED[2])]


class Killed(Exception):
    """Stands for the signal."""


def killed_after(layers: int) -> Callable[[], None]:
    """An `advance` that ends the run once so many layers are done."""
    left = iter(range(layers - 1))

    def advance() -> None:
        if next(left, None) is None:
            raise Killed

    return advance


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were quantized, and not taken from the scratch folder."""
    layers: list[int] = []
    sound = driver._quantize_layer

    def spy(runner: Any, layer: nn.Module, group: list[layout.Linear], *rest: Any) -> Any:
        layers.append(group[0].layer)
        return sound(runner, layer, group, *rest)

    monkeypatch.setattr(driver, "_quantize_layer", spy)
    return layers


def killable(activations: Activations) -> Scheme:
    return Scheme(Weights(4, group=8), activations, KVCache(4), (Override("v", Weights(0)),), Weights(8), Weights(5))


@pytest.mark.parametrize(("method", "activations"), KILLED)
def test_a_killed_calibration_goes_on_after_its_last_whole_layer_and_ends_in_the_same_bits(
    tokens: Tensor, valid: Tensor, tmp_path: Path, computed: list[int], method: str, activations: Activations
):
    scheme = killable(activations)
    expected = run(tokens, valid, method, scheme, tiny.llama(layers=3))
    computed.clear()
    with pytest.raises(Killed):
        run(tokens, valid, method, scheme, tiny.llama(layers=3), tmp_path, killed_after(2))
    assert computed == [0, 1]
    again = run(tokens, valid, method, scheme, tiny.llama(layers=3), tmp_path)
    assert computed == [0, 1, 2]
    assert differing(again.model, expected.model) == []
    assert again.errors.equals(expected.errors)
    assert again.skipped == expected.skipped
    assert len(again.skipped) == (3 if PTQ_METHODS[method].rescaling else 0)
    if PTQ_METHODS[method].rescaling:
        floats = {key for key in load_file(tmp_path / "layer-1.safetensors") if key.startswith("float/")}
        names = ("input_layernorm", "post_attention_layernorm", "self_attn.v_proj")
        assert floats == {f"float/model.layers.1.{name}.weight" for name in names}
    third = run(tokens, valid, method, scheme, tiny.llama(layers=3), tmp_path)
    assert computed == [0, 1, 2]
    assert differing(third.model, expected.model) == []


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_layers_file_that_is_not_whole_is_made_anew(
    calibrated: QuantizedModel, tokens: Tensor, valid: Tensor, tmp_path: Path, computed: list[int], keep: int
):
    run(tokens, valid, scratch=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["layer-0.safetensors", "layer-1.safetensors"]
    assert not any(key.startswith("float/") for key in load_file(files[0]))  # no rescaling has changed them
    files[0].write_bytes(files[0].read_bytes()[:keep])
    computed.clear()
    assert differing(run(tokens, valid, scratch=tmp_path).model, calibrated) == []
    assert computed == [0]
    assert sorted(tmp_path.iterdir()) == files


def test_a_kill_while_a_layer_is_written_leaves_nothing_that_is_taken_for_whole(
    calibrated: QuantizedModel, tokens: Tensor, valid: Tensor, tmp_path: Path, computed: list[int], monkeypatch
):
    def half(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rounded_layer, "save_file", half)
        with pytest.raises(Killed):
            run(tokens, valid, scratch=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    computed.clear()
    assert differing(run(tokens, valid, scratch=tmp_path).model, calibrated) == []
    assert computed == [0, 1]


@pytest.mark.parametrize("method", ["gptq", "awq+gptq"])
def test_the_same_calibration_gives_the_same_bytes(tokens: Tensor, valid: Tensor, tmp_path: Path, method: str):
    for name in ("a", "b"):
        calibrated = run(tokens, valid, method, killable(Activations(8, False, observer="mse")))
        calibrated.model.save(tmp_path / name, {"method": method}, {"errors": calibrated.errors})
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert {"codes.safetensors", "latent.safetensors", "errors.csv", contract.MANIFEST} <= set(files)
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_what_a_finished_layer_came_to_is_not_held_in_memory(
    calibrated: QuantizedModel, tokens: Tensor, valid: Tensor, tmp_path: Path
):
    """It is mapped from the layer's file, as a change of that shows."""
    model = run(tokens, valid, scratch=tmp_path).model
    assert differing(model, calibrated) == []
    for path in tmp_path.iterdir():
        with path.open("r+b") as file:
            header = int.from_bytes(file.read(8), "little")
            file.seek(8 + header)
            file.write(bytes(path.stat().st_size - 8 - header))
    assert not any(latent.any() for latent in model.latent.values())
