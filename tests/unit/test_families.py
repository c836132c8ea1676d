"""Every model family through roles, calibration, rescaling, KV cache, export and training: tiny random models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline import models
from pipeline.calibration.driver import Calibrated, Options, calibrate, plan
from pipeline.calibration.layers import Runner
from pipeline.calibration.rescale import Pair, fold, pairs, rescale
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.losses import LossWeights, distillation_loss
from pipeline.distill.student import Learns, Student, prepare
from pipeline.export.formats import export, load_exported
from pipeline.freezing import ROLES
from pipeline.quant.kv_cache import quantize_cache
from pipeline.quant.model import FLOAT_DTYPE
from pipeline.scheme import KVCache, Weights, from_short
from tests.families import FAMILIES, family, save

NO_CACHE = {"falcon-7b", "falcon-40b", "falcon-rw", "bloom", "mamba"}
OWN_ATTENTION = {
    "falcon-7b": "_split_heads",
    "falcon-40b": "_split_heads",
    "falcon-rw": "_split_heads",
    "bloom": "_reshape",
}
UNGATED = {"opt", "falcon-7b", "falcon-40b", "falcon-rw", "bloom", "gpt-neox"}
ATTENTION = ["q", "k", "v", "o"]

# What rescaling folds in each layer (maker -> the parts of its readers), and what it must not.
GQA = ({"norm -> q k v", "norm -> gate up", "up -> down"}, {"v -> o"})
MHA = (GQA[0] | GQA[1], set())
SERIAL = ({"norm -> q k v", "norm -> up", "v -> o"}, {"up -> down"})  # GELU between up and down
FOLDS: dict[str, tuple[set[str], set[str]]] = {
    "llama": GQA,
    "longchat": MHA,
    "mistral": GQA,
    "qwen2": GQA,
    "qwen2-window": MHA,
    "qwen3": GQA,
    "gemma": GQA,
    "opt": ({"norm -> q k v", "norm -> up", "v -> o", "up -> down"}, set()),
    "stablelm": MHA,
    "stablelm-2": ({"norm -> q k v gate up", "up -> down"}, {"v -> o"}),
    "falcon-7b": ({"norm -> q k v up"}, {"v -> o", "up -> down"}),
    "falcon-40b": ({"norm -> q k v", "norm -> up"}, {"v -> o", "up -> down"}),
    "falcon-rw": SERIAL,
    "bloom": SERIAL,
    "gpt-neox": SERIAL,
    "phi3": GQA,
    "glm": GQA,
    "mamba": ({"norm -> in"}, set()),
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


# Roles and rows


@every_family
def test_every_linear_of_the_layers_has_its_roles(name: str):
    model = family(name)
    prefix, layers = models.decoder_layers(model)
    found = models.linears(model)
    parts = ["in", "x", "out"] if name == "mamba" else [*ATTENTION, "up", "down"] + ["gate"] * (name not in UNGATED)
    for layer in (0, 1):
        assert sorted(role for x in found if x.layer == layer for role in x.parts()) == sorted(parts)
    every = {f"{prefix}.{x}" for x, module in layers.named_modules() if isinstance(module, nn.Linear)}
    assert every - {x.name for x in found} == (
        {f"{prefix}.{i}.mixer.dt_proj" for i in (0, 1)} if name == "mamba" else set()
    )


@every_family
def test_the_parts_of_a_linear_are_all_its_rows_once(name: str):
    model = family(name)
    for linear in models.linears(model):
        if linear.rows:
            rows = torch.cat(list(linear.rows.values()))
            assert torch.equal(rows.sort().values, torch.arange(model.get_submodule(linear.name).out_features))
            assert linear.role == "".join(linear.rows)


@contextmanager
def attention_states(name: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Tensor]]:
    """What the first layer's attention multiplies, as the model's own code splits it: q, k, v, rotated where it is."""
    seen: dict[str, Tensor] = {}

    def keep(*states: Tensor) -> None:
        for role, state in zip("qkv", states, strict=True):
            seen.setdefault(role, state.clone())

    def attention(module: nn.Module, *args: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        keep(*args[:3])
        return sdpa_attention_forward(module, *args, **kwargs)

    if name in OWN_ATTENTION:
        module, method = models.decoder_layers(model)[1][0].self_attention, OWN_ATTENTION[name]
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
    yield seen


@with_attention
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_the_rows_of_q_k_and_v_make_the_queries_keys_and_values(name: str, role: str, tokens, monkeypatch):
    """As the model itself splits them: other rows change nothing of a state, its own change all of it."""
    model = family(name)
    linear = next(x for x in models.linears(model) if role in x.parts())
    with attention_states(name, model, monkeypatch) as before:
        model(input_ids=tokens)
        before = dict(before)
    model = family(name)
    module = model.get_submodule(linear.name)
    rows = linear.parts()[role]
    module.weight[rows] += torch.randn(module.weight[rows].shape)
    with attention_states(name, model, monkeypatch) as after:
        model(input_ids=tokens)
    for other in "qkv":
        same = before[other] == after[other]
        assert not same.any() if other == role else same.all(), other


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNGATED | {"mamba"}])
def test_the_gates_rows_go_through_the_nonlinearity_and_ups_do_not(name: str, tokens: Tensor):
    def states(changed: str | None) -> dict[str, Tensor]:
        """What the nonlinearity and down read in the first layer, with a part of the weights changed."""
        model = family(name)
        found = models.linears(model)
        for linear in found:
            if linear.layer == 0 and changed in linear.parts():
                weight = model.get_submodule(linear.name).weight
                weight[linear.parts()[changed]] += torch.randn(weight[linear.parts()[changed]].shape)
        mlp = models.decoder_layers(model)[1][0].mlp
        seen: dict[str, Tensor] = {}
        activation = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
        activation.register_forward_pre_hook(lambda _, args: seen.update(gate=args[0]))
        mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.update(down=args[0]))
        model(input_ids=tokens)
        return seen

    before, gate, up = states(None), states("gate"), states("up")
    assert not (gate["gate"] == before["gate"]).any()
    assert torch.equal(up["gate"], before["gate"])
    assert not (up["down"] == before["down"]).any()


@every_family
def test_hidden_states_times_the_head_are_the_logits(name: str, tokens: Tensor):
    model = family(name)
    prefix, layers = models.decoder_layers(model)
    assert model.get_submodule(prefix) is layers
    assert len(layers) == 2
    head = models.head(model)
    assert model.get_submodule(head.name) is model.get_output_embeddings()
    logits = models.hidden_states(model, tokens) @ models.head_weight(model).T
    assert moved(logits, model(input_ids=tokens).logits) < 1e-5


# Calibration


@every_family
def test_layer_by_layer_is_the_whole_forward(name: str, tokens: Tensor, valid: Tensor):
    """What each linear reads, at valid positions, and what the last layer returns."""
    model = family(name)
    found, layers = models.linears(model), models.decoder_layers(model)[1]
    seen: dict[str, Tensor] = {}
    handles = models.on_layer_inputs(model, found, lambda x, value: seen.update({x.name: value}))
    last: list[Tensor] = []
    handles.append(
        layers[-1].register_forward_hook(lambda _, __, out: last.append(out[0] if isinstance(out, tuple) else out))
    )
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()

    runner = Runner.start(model, tokens, valid, 4, "float32")
    for index, layer in enumerate(layers):
        group = [x for x in found if x.layer == index]
        gathered, observed = runner.gather(layer, group), runner.advance(layer, group, set())
        for linear in group:
            x = seen[linear.name].reshape(*valid.shape, -1)[valid]
            torch.testing.assert_close(gathered[linear.name].hessian, x.T @ x, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(gathered[linear.name].absmax, x.abs().amax(dim=0), rtol=1e-4, atol=1e-5)
            assert float(observed[linear.name].greatest) == pytest.approx(float(x.max()), rel=1e-4)
    assert moved(torch.cat(runner.states), last[0]) < 1e-5


@every_family
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_calibrated_models_numbers_give_a_fresh_one_its_logits(name: str, method: str, tokens, valid):
    model, fresh, teacher = family(name), family(name), family(name)
    result = calibrated(model, tokens, valid, method).model
    called: set[str] = set()
    models.on_layer_inputs(fresh, models.linears(fresh), lambda x, _: called.add(x.name))
    undo = result.put_into(fresh)
    quantized, expected = fresh(input_ids=tokens).logits, model(input_ids=tokens).logits
    assert called == result.codes.keys() == result.inputs.keys()
    assert quantized.isfinite().all()
    assert 1e-4 < moved(quantized, expected) < 0.5  # 8-bit inputs a token
    undo()
    assert moved(fresh(input_ids=tokens).logits, expected) < 1e-6
    assert moved(expected, teacher(input_ids=tokens).logits) > 1e-3


# Rescaling


def stored(name: str) -> PreTrainedModel:
    """The family's model with the numbers that an export holds."""
    model = family(name)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(FLOAT_DTYPE))
    return model


def described(pair: Pair) -> str:
    readers = sorted((role for reader in pair.readers for role in reader.parts()), key=ROLES.index)
    return f"{'norm' if pair.rows is None else {'o': 'v', 'down': 'up'}[readers[0]]} -> {' '.join(readers)}"


@every_family
@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_rescaling_folds_what_it_can_and_changes_no_logit(name: str, method: str, tokens, valid):
    model, found = stored(name), models.linears(family(name))
    before = model(input_ids=tokens).logits
    teacher, rescaled = stored(name), set()
    runner = Runner.start(model, tokens, valid, 4, "float32")
    for index, layer in enumerate(models.decoder_layers(model)[1]):
        group = [x for x in found if x.layer == index]
        inputs = runner.gather(layer, group)
        found_pairs = {str(pair): pair for pair in pairs(runner, layer, group)}
        skipped = rescale(runner, layer, group, inputs, {x.name: Weights(4) for x in group}, method, 0.5)
        folds, cannot = FOLDS[name]
        assert {described(pair) for pair in found_pairs.values()} == folds | cannot
        assert {described(found_pairs[pair]) for pair in skipped} == cannot
        rescaled |= {reader.name for pair in found_pairs.keys() - skipped for reader in found_pairs[pair].readers}
        fresh = runner.gather(layer, group)
        for linear in group:
            old, new = inputs[linear.name], fresh[linear.name]
            assert moved(old.hessian, new.hessian) < 2e-3
            assert moved(old.absmax, new.absmax) < 2e-3
        runner.advance(layer, group, set())
    assert moved(model(input_ids=tokens).logits, before) < 5e-5
    for name in rescaled:
        assert moved(model.get_submodule(name).weight, teacher.get_submodule(name).weight) > 0.01


def test_a_fold_that_is_none_is_seen_beside_activations_that_dwarf_it(tokens: Tensor, valid: Tensor):
    """GELU stands between Bloom's up and down; a channel of the residual stream is as large as some models have it."""
    model = stored("bloom")
    model.transformer.word_embeddings_layernorm.bias[3] = 2e3
    layer = models.decoder_layers(model)[1][0]
    runner = Runner.start(model, tokens, valid, 4, "float32")
    group = [x for x in models.linears(model) if x.layer == 0]
    found = {described(pair): pair for pair in pairs(runner, layer, group)}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scale = 1 + 0.2 * torch.rand(128, generator=torch.Generator().manual_seed(0))
    assert fold(runner, layer, found["up -> down"], scale) is None
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert fold(runner, layer, found["v -> o"], scale[:32]) is not None


# KV cache


def generated(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The logits of token after token, keys and values out of a cache."""
    cache, logits = DynamicCache(config=model.config), []
    for token in tokens.split(1, dim=1):
        logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


@with_cache
@pytest.mark.parametrize("scheme", [KVCache(4), KVCache(4, False), KVCache(4, True, 8), KVCache(4, False, 4)], ids=str)
def test_prefill_and_generation_see_the_same_quantized_keys_and_values(name: str, scheme: KVCache, tokens: Tensor):
    """In float64: float32's noise moves a value across a tie now and then, and that moves the logits."""
    model = family(name).double()
    before = model(input_ids=tokens, use_cache=False).logits
    undo = quantize_cache(model, scheme)
    prefill = model(input_ids=tokens, use_cache=False).logits
    assert moved(generated(model, tokens), prefill) < 1e-5
    assert moved(model(input_ids=tokens[:, :8], use_cache=False).logits, prefill[:, :8]) < 1e-5  # causal
    assert moved(prefill, before) > 0.01
    undo()
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before)


@with_cache
def test_keys_and_values_are_quantized_as_the_cache_holds_them(name: str, tokens, monkeypatch):
    """At 8 bits and a scale a token, 1 + 2 * 127 steps span what the attention reads."""
    model = family(name)
    with attention_states(name, model, monkeypatch) as states:
        model(input_ids=tokens, use_cache=False)
    model = family(name)
    quantize_cache(model, KVCache(8))
    reads: dict[str, Tensor] = {}

    def kernel(query: Tensor, key: Tensor, value: Tensor, **kwargs: object) -> Tensor:
        reads.setdefault("k", key)
        reads.setdefault("v", value)
        return original(query, key, value, **kwargs)

    original = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", kernel)
    model(input_ids=tokens, use_cache=False)
    for role in "kv":
        by_token = states[role].transpose(1, 2).flatten(2)  # (batch, tokens, heads * head_dim)
        scale = (by_token.abs().amax(dim=-1, keepdim=True) / 127).half().float()
        expected = ((by_token / scale).round().clamp(-128, 127) * scale).view(
            *by_token.shape[:2], *states[role].shape[1::2]
        )
        found = reads[role].transpose(1, 2)
        found = found[:, :, :: found.shape[2] // states[role].shape[1]]  # one of the query heads that share a key head
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NO_CACHE)
def test_a_model_that_lends_no_attention_is_told_so(name: str, tokens: Tensor):
    model = family(name)
    before = model(input_ids=tokens).logits
    kind = type(model).__name__
    with pytest.raises(
        ValueError, match=f"{kind} has no attention whose keys and values can be quantized; set kv_cache.bits"
    ):
        quantize_cache(model, KVCache(4))
    with pytest.raises(ValueError, match=f"the scheme does not fit {kind}:\n.*set kv_cache.bits to 0"):
        plan(model, from_short("W4KV4"))
    assert torch.equal(model(input_ids=tokens).logits, before)


# Export


@every_family
def test_the_export_reloads_as_the_same_numbers(name: str, tmp_path: Path, tokens: Tensor, valid: Tensor):
    scheme = "W4g16A8" if name in NO_CACHE else "W4g16A8KV4"
    result, reference = calibrated(family(name), tokens, valid, "rtn", scheme).model, family(name)
    out = tmp_path / "out"
    out.mkdir()
    facts = export(result, save(tmp_path / "teacher", name), "compressed-tensors", out)
    assert facts["logits_difference"] < 1e-4
    result.put_into(reference)
    loaded = load_exported(out, "float32")
    assert type(loaded) is type(reference)
    expected = reference(input_ids=tokens).logits
    logits = loaded(input_ids=tokens).logits
    assert (logits - expected).norm() / expected.norm() < 1e-3  # a code of the keys may cross a tie
    parameters = dict(loaded.named_parameters())
    for linear in result.codes:
        assert torch.equal(loaded.get_submodule(linear).weight, result.weight(linear))
    for parameter, values in result.floats.items():
        assert torch.equal(parameters[parameter], values.float()), parameter


# Training


def student(name: str, policy: str, mode: str, tokens: Tensor, valid: Tensor) -> Student:
    start = calibrated(family(name), tokens, valid).model
    model = family(name)
    return prepare(model, start, frozen_rows(policy, models.linears(model)), Learns(mode), torch.float32)


def learn(made: Student, name: str, tokens: Tensor, valid: Tensor) -> None:
    """One step of the distillation loss, of which every master gets a gradient."""
    teacher = family(name)
    heads = models.head_weight(made.model), models.head_weight(teacher)
    states = [models.hidden_states(model, tokens) for model in (made.model, teacher)]
    distillation_loss(*states, heads, tokens, valid, LossWeights(0.5, 0.5, 2.0))[0].backward()
    made.collect_gradients()
    for key, master in made.masters.items():
        assert master.grad.isfinite().all(), key
        assert master.grad.any(), key
    torch.optim.AdamW(made.masters.values(), lr=0.1).step()
    made.refresh()


@with_attention
@pytest.mark.parametrize("mode", ["static", "minmax"])
@pytest.mark.parametrize("policy", ["ov", "v"])
def test_frozen_rows_keep_their_codes_and_the_others_learn(name: str, policy: str, mode: str, tokens, valid):
    made = student(name, policy, mode, tokens, valid)
    logits = made.model(input_ids=tokens).logits.detach()
    learn(made, name, tokens, valid)
    finished, start = made.finished(), made.start
    for linear in models.linears(made.model):
        for role, rows in linear.parts().items():
            frozen = role in policy
            for new, old in (
                (finished.codes, start.codes),
                (dict(made.model.named_parameters()), {f"{linear.name}.weight": start.weight(linear.name)}),
            ):
                key = linear.name if linear.name in new else f"{linear.name}.weight"
                assert torch.equal(new[key][rows], old[key][rows]) is frozen, (linear.name, role)
            if frozen:
                for new, old in zip(finished.steps[linear.name], start.steps[linear.name], strict=True):
                    assert torch.equal(new[rows], old[rows])
    fresh = family(name)
    finished.put_into(fresh)
    made.model.requires_grad_(False)
    now = made.model(input_ids=tokens).logits
    assert moved(fresh(input_ids=tokens).logits, now) < 0.05  # norms and biases are stored in float16
    assert moved(now, logits) > 0.05


def test_mamba_learns_and_has_no_attention_to_freeze(tokens: Tensor, valid: Tensor):
    with pytest.raises(ValueError, match=r"'ov' needs linears of the roles \['o', 'v'\].*mixer\.in_proj \(in\)"):
        student("mamba", "ov", "static", tokens, valid)
    made = student("mamba", "none", "static", tokens, valid)
    learn(made, "mamba", tokens, valid)
    finished = made.finished()
    assert all(not torch.equal(codes, made.start.codes[name]) for name, codes in finished.codes.items())
