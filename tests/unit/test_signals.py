"""Signals of a double-precision model against torch's own autograd on the whole batch."""

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline import models
from pipeline.distill.freeze import FREEZE_POLICIES
from pipeline.distill.losses import LossWeights
from pipeline.quant.model import QuantizedModel
from pipeline.signals import by_layer, probe, suggest_freeze
from tests import tiny

WEIGHTS = LossWeights(0.5, 0.5, 1.0, 16)
COLUMNS = ["variant", "layer", "role", "name", "tensor", "statistic", "value"]


@pytest.fixture(scope="module")
def makers(calibrated: QuantizedModel) -> dict[str, Callable[[], PreTrainedModel]]:
    def ptq() -> PreTrainedModel:
        model = tiny.llama()
        calibrated.put_into(model)
        return model.double()

    return {"float": lambda: tiny.llama().double(), "ptq": ptq}


@pytest.fixture(scope="module")
def table(makers, tokens: Tensor, valid: Tensor) -> pd.DataFrame:
    return probe(makers, tokens, valid, 4, WEIGHTS, lambda: None)


def outputs_of(model: PreTrainedModel, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every linear's output, its gradient retained, and the logits."""
    outputs: dict[str, Tensor] = {}
    for linear in models.linears(model):
        module = model.get_submodule(linear.name)
        module.weight.requires_grad_(True)

        def see(_: object, __: object, out: Tensor, name: str = linear.name) -> None:
            outputs[name] = out
            out.retain_grad()

        module.register_forward_hook(see)
    logits = model(input_ids=tokens).logits
    return outputs, logits


@pytest.fixture(scope="module")
def expected(makers, tokens: Tensor, valid: Tensor) -> dict[tuple[str, str, str, str], float]:
    """Each statistic by variant, linear, tensor and name, from one backward over all sequences."""
    found = {}
    counted = valid[:, 1:]
    teacher_outputs, teacher_logits = outputs_of(makers["float"](), tokens)
    log_p = functional.log_softmax(teacher_logits.detach()[:, :-1][counted], dim=-1)
    for variant, make in makers.items():
        model = make()
        outputs, logits = outputs_of(model, tokens)
        predicted = logits[:, :-1][counted]
        ce = functional.cross_entropy(predicted, tokens[:, 1:][counted])
        kl = functional.kl_div(functional.log_softmax(predicted, -1), log_p, log_target=True, reduction="batchmean")
        (0.5 * ce + 0.5 * kl).backward()
        for name, output in outputs.items():
            value, reference = output.detach()[valid], teacher_outputs[name].detach()[valid]
            noise = (value - reference).square().sum()
            ratio = reference.square().sum() / noise
            found[variant, name, "output", "mean_square"] = value.square().mean().item()
            found[variant, name, "output", "mean_abs"] = value.abs().mean().item()
            found[variant, name, "output", "gradient_norm_sq"] = output.grad.square().sum().item()
            found[variant, name, "output", "sqnr_db"] = 200.0 if noise == 0 else (10 * ratio.log10()).item()
            gradient = model.get_submodule(name).weight.grad
            found[variant, name, "weight", "gradient_norm_sq"] = torch.linalg.matrix_norm(gradient).item() ** 2
    return found


@pytest.mark.parametrize("variant", ["float", "ptq"])
@pytest.mark.parametrize(
    ("tensor", "statistic"),
    [
        ("output", "mean_square"),
        ("output", "mean_abs"),
        ("output", "gradient_norm_sq"),
        ("output", "sqnr_db"),
        ("weight", "gradient_norm_sq"),
    ],
)
def test_each_statistic_is_what_hooks_and_autograd_measure(table, expected, variant: str, tensor: str, statistic: str):
    chosen = table[(table.variant == variant) & (table.tensor == tensor) & (table.statistic == statistic)]
    assert len(chosen) == 14
    for row in chosen.itertuples():
        assert row.value == pytest.approx(expected[variant, row.name, tensor, statistic], rel=1e-6)


def test_the_table_is_tidy(table: pd.DataFrame):
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 14 * 5
    assert not table.duplicated(["variant", "name", "tensor", "statistic"]).any()
    assert table.value.map(lambda v: v == v and abs(v) != float("inf")).all()
    assert set(table[table.name == "model.layers.1.mlp.up_proj"].role) == {"up"}
    assert set(table[table.name == "model.layers.1.mlp.up_proj"].layer) == {1}


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_the_batch_changes_nothing_but_the_order_of_sums(makers, table, tokens: Tensor, valid: Tensor, batch: int):
    calls: list[None] = []
    again = probe(makers, tokens, valid, batch, WEIGHTS, lambda: calls.append(None))
    assert len(calls) == 2 * -(-6 // batch)
    pd.testing.assert_frame_equal(again, table, rtol=1e-6)


def test_what_lies_behind_the_valid_tokens_is_not_looked_at(makers, table, tokens: Tensor, valid: Tensor):
    again = probe(makers, tokens.where(valid, (tokens + 7) % 259), valid, 4, WEIGHTS, lambda: None)
    pd.testing.assert_frame_equal(again, table, rtol=1e-9)


def test_a_statistic_by_layer_is_a_column_a_role(table: pd.DataFrame):
    wide = by_layer(table, "ptq", "weight", "gradient_norm_sq")
    assert list(wide.columns) == ["layer", "q", "k", "v", "o", "gate", "up", "down"]
    chosen = table[(table.variant == "ptq") & (table.statistic == "gradient_norm_sq") & (table.tensor == "weight")]
    (value,) = chosen[(chosen.layer == 1) & (chosen.role == "down")].value
    assert wide.set_index("layer").loc[1, "down"] == value


def test_several_linears_of_a_role_in_a_layer_are_averaged():
    rows = [("x", 0, "other", f"e{i}", "weight", "gradient_norm_sq", v) for i, v in enumerate((1.0, 3.0))]
    assert by_layer(pd.DataFrame(rows, columns=COLUMNS), "x", "weight", "gradient_norm_sq").values.tolist() == [
        [0, 2.0]
    ]


def gradients(o: list[float], v: list[float], qk: tuple[float, float] = (0.5, 2.0)) -> pd.DataFrame:
    """Gradient norms of four projections by layer; q's and k's geometric mean is 1."""
    columns = {"q": [qk[0]] * len(o), "k": [qk[1]] * len(o), "o": o, "v": v}
    rows = [
        ("ptq", layer, role, f"{layer}.{role}", "weight", "gradient_norm_sq", value)
        for role, values in columns.items()
        for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(
    ("o", "v", "policy"),
    [
        ([2, 3, 2, 9], [2, 2, 2, 2], "ov"),
        ([2, 2, 2, 2], [1.9, 1.9, 1.9, 1.9], "o"),
        ([1, 1, 1, 1], [9, 9, 9, 9], "v"),
        ([1.9, 1.9, 1.9, 1.9], [1, 1, 1, 1], "none"),
        ([9, 9, 9, 0.5], [9, 9, 0.5, 0.5], "o"),  # above q and k in three and in two of four layers
    ],
)
def test_the_roles_whose_gradients_stand_out_are_suggested(o: list[float], v: list[float], policy: str):
    found = suggest_freeze(gradients(o, v), "ptq")
    assert (found["variant"], found["policy"]) == ("ptq", policy)
    assert set(FREEZE_POLICIES[policy]) <= {"o", "v"}


def test_the_evidence_is_relative_to_q_and_k():
    """Their geometric mean is 4 here: a median of 12 / 4, above 4 in two of three layers."""
    found = suggest_freeze(gradients([12, 20, 3], [4, 4, 4], qk=(2.0, 8.0)), "ptq")
    assert found["evidence"]["o"] == {"median_ratio_to_qk": 3.0, "share_of_layers_above_qk": pytest.approx(2 / 3)}
    assert found["evidence"]["v"]["median_ratio_to_qk"] == 1.0
    assert found["median_gradient_norm_sq"] == {"q": 2.0, "k": 8.0, "v": 4.0, "o": 12.0}


def test_a_model_without_separate_projections_gets_no_suggestion():
    table = gradients([1], [1])
    found = suggest_freeze(table[table.role != "v"], "ptq")
    assert found["policy"] == "none"
    assert "no separate q, k, v, o" in found["reason"]
