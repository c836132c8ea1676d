"""What sets the families apart, for tests that go through them, and what their attention multiplies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.calibration.driver import Calibrated, calibrate
from pipeline.calibration.methods import Options
from pipeline.knobs.scheme import from_short
from pipeline.models import layout
from tests.families import FAMILIES

NO_CACHE = ("falcon-7b", "falcon-40b", "falcon-rw", "bloom", "mamba")
OWN_ATTENTION = {
    "falcon-7b": "_split_heads",
    "falcon-40b": "_split_heads",
    "falcon-rw": "_split_heads",
    "bloom": "_reshape",
}

every_family = pytest.mark.parametrize("name", FAMILIES)
with_attention = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mamba"])
with_cache = pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NO_CACHE])


def calibrated(
    model: PreTrainedModel, tokens: Tensor, valid: Tensor, method: str = "rtn", scheme: str = "W4A8"
) -> Calibrated:
    options = Options(method, {}, batch=4, measure=False)
    return calibrate(model, tokens, valid, from_short(scheme), options, None, lambda: None)


def moved(a: Tensor, b: Tensor) -> float:
    """The greatest difference, as a share of the greatest value."""
    return float((a - b).abs().max() / b.abs().max())


@contextmanager
def attention_states(name: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Tensor]]:
    """What the first layer's attention multiplies, as the model's own code splits it: q, k, v, rotated where it is."""
    states_by_role: dict[str, Tensor] = {}

    def keep(*states: Tensor) -> None:
        for role, state in zip("qkv", states, strict=True):
            states_by_role.setdefault(role, state.clone())

    def attention(module: nn.Module, *args: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        keep(*args[:3])
        return sdpa_attention_forward(module, *args, **kwargs)

    if name in OWN_ATTENTION:
        module, method = layout.decoder_layers(model)[1][0].self_attention, OWN_ATTENTION[name]
        split: Callable[[Tensor], tuple[Tensor, ...]] = getattr(module, method)

        def splitting(fused: Tensor) -> tuple[Tensor, ...]:
            states = split(fused)
            keep(*states)
            return states

        monkeypatch.setattr(module, method, splitting)
    else:
        AttentionInterface.register("seen", attention)
        AttentionMaskInterface.register("seen", sdpa_mask)
        model.set_attn_implementation("seen")
    yield states_by_role
