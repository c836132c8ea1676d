"""Streamed moments against scipy and numpy on all values at once; keys and values against what attention is given."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.models import forward, layout
from pipeline.signals import tensors
from pipeline.signals.tensors import Moments, Watch, statistics, valid_rows
from tests.families import FAMILIES, family
from tests.others import HYBRIDS, other


def reference(x: Tensor) -> dict[str, float]:
    values = x.double().numpy().ravel()
    return {
        "kurtosis": stats.kurtosis(values, fisher=False),
        "std": values.std(),
        "absmax": np.abs(values).max(),
        "outliers": (np.abs(values - values.mean()) > 6 * values.std()).mean(),
    }


def streamed(parts: list[Tensor], total: int) -> dict[str, float]:
    moments = Moments(total)
    for part in parts:
        moments.add(part)
    return moments.statistics()


@pytest.mark.parametrize("mean", [0.0, -3.0, 1e4])
@pytest.mark.parametrize("sizes", [[5000], [1, 4999], [100, 1, 3000, 1899], [1000] * 5])
def test_streamed_moments_are_those_of_all_values(generator, mean: float, sizes: list[int]):
    x = torch.randn(5000, generator=generator, dtype=torch.float64) ** 3 + mean
    x[::700] += 60
    summary = streamed(list(x.split(sizes)), 5000)
    assert summary == pytest.approx(reference(x), rel=1e-9)
    assert summary["outliers"] > 0


def test_a_gaussian_has_kurtosis_3_and_a_long_tail_more(generator):
    x = torch.randn(200_000, generator=generator)
    assert statistics(x)["kurtosis"] == pytest.approx(3, abs=0.05)
    assert statistics(x**3)["kurtosis"] > 20
    assert statistics(x.sign())["kurtosis"] == pytest.approx(1, abs=1e-4)


@given(
    scales=st.lists(st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3]), min_size=1, max_size=60),
    shifts=st.lists(st.sampled_from([-50.0, 0.0, 7.0]), min_size=1, max_size=5),
    spare=st.integers(0, 400),
    seed=st.integers(0, 1000),
)
def test_outliers_are_counted_exactly_whatever_the_order_of_wide_and_narrow_batches(scales, shifts, spare, seed):
    """Up to 60 batches, where those to come may be a thousand times wider or narrower; fewer values than announced."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(40, generator=generator) ** 3 * scale + shifts[i % len(shifts)] for i, scale in enumerate(scales)
    ]
    summary = streamed(parts, 40 * len(parts) + spare)
    assert summary["outliers"] == pytest.approx(reference(torch.cat(parts))["outliers"], abs=1e-12)


def test_of_many_batches_only_what_may_be_an_outlier_is_kept(generator):
    x = torch.randn(80_000, generator=generator)
    moments = Moments(len(x))
    for part in x.split(20_000):
        moments.add(part)
    assert sum(map(len, moments.far)) < 0.01 * len(x)


def test_values_are_taken_in_by_chunks(generator, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(10, 100, generator=generator)
    whole = statistics(x)
    monkeypatch.setattr(tensors, "CHUNK", 77)
    assert statistics(x) == pytest.approx(whole, rel=1e-9)


def test_equal_values_have_no_tail():
    assert statistics(torch.full((4, 4), 2.5)) == {"kurtosis": 0.0, "std": 0.0, "absmax": 2.5, "outliers": 0.0}


def test_no_values_change_nothing(generator):
    x = torch.randn(100, generator=generator)
    assert streamed([x, x[:0]], 100) == streamed([x], 100)


def test_valid_rows_of_each_layout():
    x = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    wanted = x[mask]
    assert torch.equal(valid_rows(x, mask), wanted)
    assert torch.equal(valid_rows(x.view(6, 4), mask), wanted)
    assert torch.equal(valid_rows(x.view(6, 4)[:5], mask), x.view(6, 4)[:5])  # an expert's
    assert torch.equal(valid_rows(x, torch.ones(2, 3, dtype=torch.bool)), x.view(6, 4))


def attended(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> dict[tuple[int, str], Tensor]:
    """Keys and values that attention is given, valid tokens alone."""
    keys_and_values: dict[tuple[int, str], Tensor] = {}

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: object):
        for role, x in (("k", key), ("v", value)):
            keys_and_values[module.layer_idx, role] = x.transpose(1, 2)[valid]
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("test_record", record)
    AttentionMaskInterface.register("test_record", sdpa_mask)
    model.set_attn_implementation("test_record")
    model(input_ids=tokens, use_cache=False)
    return keys_and_values


def watch(model: PreTrainedModel, tokens: Tensor, valid: Tensor, batch: int) -> tuple[Watch, list[Tensor]]:
    watcher = Watch(model, layout.linears(model), tokens.numel())
    states = []
    for part, mask in zip(tokens.split(batch), valid.split(batch), strict=True):
        with torch.no_grad(), watcher.watching(mask) as extra:
            states.append(layout.backbone(model)(input_ids=part, use_cache=False, **extra).last_hidden_state)
    return watcher, states


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gpt-neox", "phi3", "opt"])
def test_keys_and_values_are_those_that_attention_is_given(name: str, tokens: Tensor, valid: Tensor):
    """After rotary embedding: with queries and keys before it the same projections would have other statistics."""
    expected = attended(family(name), tokens, valid)
    moments = watch(family(name), tokens, valid, 4)[0].cache
    assert moments.keys() == expected.keys()
    assert len(moments) == 4
    for key, values in expected.items():
        assert moments[key].statistics() == pytest.approx(reference(values), rel=1e-4), key


def watched_alike(model: PreTrainedModel, tokens: Tensor, valid: Tensor) -> Watch:
    """What is seen of a model whose states are those that it has without being watched."""
    plain = [forward.hidden_states(model, part) for part in tokens.split(4)]
    watched, states = watch(model, tokens, valid, 4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(states, plain, strict=True))
    assert watched.inputs.keys() == {linear.name for linear in layout.linears(model)}
    return watched


@pytest.mark.parametrize("name", FAMILIES)
def test_watching_changes_nothing_and_sees_every_linear_and_layer(name: str, tokens: Tensor, valid: Tensor):
    model = family(name)
    watched = watched_alike(model, tokens, valid)
    assert set(watched.cache) == (set() if name == "mamba" else {(i, role) for i in (0, 1) for role in "kv"})
    tokens_seen = {m.count / model.get_submodule(name).in_features for name, m in watched.inputs.items()}
    assert tokens_seen == {int(valid.sum())}
    assert not [m for m in model.modules() if m._forward_pre_hooks]


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_layer_that_keeps_a_state_has_one_while_keys_and_values_are_seen(name: str, tokens: Tensor, valid: Tensor):
    """Its code reads the state of its layer off the cache; keys and values are the other layer's alone."""
    watched = watched_alike(other(name), tokens, valid)
    assert set(watched.cache) == (set() if name == "minimax" else {(1, "k"), (1, "v")})  # it takes its own cache alone


def test_a_model_that_keeps_states_alone_has_no_keys_and_values(tokens: Tensor, valid: Tensor):
    assert not watched_alike(other("bamba", attn_layer_indices=[]), tokens, valid).cache


def test_an_input_that_several_linears_read_is_looked_at_once(tokens: Tensor, valid: Tensor):
    moments = watch(family("llama"), tokens, valid, 2)[0].inputs
    q, k, v, o = (moments[f"model.layers.1.self_attn.{part}_proj"] for part in "qkvo")
    assert q is k
    assert k is v
    assert o is not q
