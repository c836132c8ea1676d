"""Every model family: which rows of its linears play which role in the model's own code."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.models import forward, layout
from tests.families import FAMILIES, family
from tests.others import other
from tests.unit.layouts import attention_states, every_family, moved, with_attention

UNGATED = {"opt", "falcon-7b", "falcon-40b", "falcon-rw", "bloom", "gpt-neox"}
ATTENTION = ["q", "k", "v", "o"]


@every_family
def test_every_linear_of_the_layers_has_its_roles(name: str):
    model = family(name)
    prefix, layers = layout.decoder_layers(model)
    linears = layout.linears(model)
    parts = ["in", "x", "out"] if name == "mamba" else [*ATTENTION, "up", "down"] + ["gate"] * (name not in UNGATED)
    for layer in (0, 1):
        assert sorted(role for x in linears if x.layer == layer for role in x.parts()) == sorted(parts)
    every = {f"{prefix}.{x}" for x, module in layers.named_modules() if isinstance(module, nn.Linear)}
    assert every - {x.name for x in linears} == (
        {f"{prefix}.{i}.mixer.dt_proj" for i in (0, 1)} if name == "mamba" else set()
    )


@every_family
def test_the_parts_of_a_linear_are_all_its_rows_once(name: str):
    model = family(name)
    for linear in layout.linears(model):
        if linear.rows:
            rows = torch.cat(list(linear.rows.values()))
            assert torch.equal(rows.sort().values, torch.arange(model.get_submodule(linear.name).out_features))
            assert linear.role == "".join(linear.rows)


@with_attention
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_the_rows_of_q_k_and_v_make_the_queries_keys_and_values(name: str, role: str, tokens, monkeypatch):
    """As the model itself splits them: other rows change nothing of a state, its own change all of it."""
    model = family(name)
    linear = next(x for x in layout.linears(model) if role in x.parts())
    with attention_states(name, model, monkeypatch) as before:
        model(input_ids=tokens)
        before = dict(before)
    model = family(name)
    module = model.get_submodule(linear.name)
    rows = linear.parts()[role]
    module.weight[rows] += torch.randn(module.weight[rows].shape)
    with attention_states(name, model, monkeypatch) as after:
        model(input_ids=tokens)
    for part in "qkv":
        same = before[part] == after[part]
        assert not same.any() if part == role else same.all(), part


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNGATED | {"mamba"}])
def test_the_gates_rows_go_through_the_nonlinearity_and_ups_do_not(name: str, tokens: Tensor):
    def states(changed: str | None) -> dict[str, Tensor]:
        """What the nonlinearity and down read in the first layer, with a part of the weights changed."""
        model = family(name)
        for linear in layout.linears(model):
            if linear.layer == 0 and changed in linear.parts():
                weight = model.get_submodule(linear.name).weight
                weight[linear.parts()[changed]] += torch.randn(weight[linear.parts()[changed]].shape)
        mlp = layout.decoder_layers(model)[1][0].mlp
        inputs: dict[str, Tensor] = {}
        activation = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
        activation.register_forward_pre_hook(lambda _, args: inputs.update(gate=args[0]))
        mlp.down_proj.register_forward_pre_hook(lambda _, args: inputs.update(down=args[0]))
        model(input_ids=tokens)
        return inputs

    before, gate, up = states(None), states("gate"), states("up")
    assert not (gate["gate"] == before["gate"]).any()
    assert torch.equal(up["gate"], before["gate"])
    assert not (up["down"] == before["down"]).any()


@every_family
def test_hidden_states_times_the_head_are_the_logits(name: str, tokens: Tensor):
    model = family(name)
    prefix, layers = layout.decoder_layers(model)
    assert model.get_submodule(prefix) is layers
    assert len(layers) == 2
    head = layout.head(model)
    assert model.get_submodule(head.name) is model.get_output_embeddings()
    logits = forward.hidden_states(model, tokens) @ forward.head_weight(model).T
    assert moved(logits, model(input_ids=tokens).logits) < 1e-5


def test_a_model_that_is_its_own_base_model_has_hidden_states(tokens: Tensor):
    """Llama 4 names another prefix than its decoder has, so that transformers takes the whole for its base model."""
    model = other("llama4")
    assert model.base_model is model
    logits = forward.hidden_states(model, tokens) @ forward.head_weight(model).T
    assert moved(logits, model(input_ids=tokens).logits) < 1e-5


def test_projections_of_a_state_space_are_not_taken_for_attentions():
    roles = {linear.name: linear.role for linear in layout.linears(other("jamba"))}
    mixer = {name.rsplit(".", 1)[-1]: role for name, role in roles.items() if ".mamba." in name}
    assert mixer == {"in_proj": "in", "x_proj": "x", "out_proj": "out"}
    assert roles["model.layers.1.self_attn.o_proj"] == "o"
