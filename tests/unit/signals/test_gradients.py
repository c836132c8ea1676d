"""Signals of double-precision models against torch's own autograd on the whole batch."""

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.losses.chunked import LossWeights
from pipeline.models import layout
from pipeline.signals.gradients import Probe
from pipeline.signals.labels import Text
from pipeline.signals.table import COLUMNS
from tests.families import family
from tests.unit.signals.conftest import load_float, quantized_model, run

Expected = dict[tuple[str, str, str, str], float]


def watched(model: PreTrainedModel, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs, before the model's own quantizer sees them, and outputs of some modules, their gradients retained."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def see(name: str, out: Tensor) -> None:
        out.retain_grad()
        outputs[name] = out

    for name in names:
        module = model.get_submodule(name)
        module.weight.requires_grad_(True)
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0].detach()}), prepend=True
        )
        module.register_forward_hook(lambda _, __, out, name=name: see(name, out))
    return inputs, outputs


def losses(model: PreTrainedModel, teacher_logits: Tensor, text: Text) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, cross-entropy and KL to the teacher, means over the tokens that are predicted."""
    counted = text.valid[:, 1:]
    logits = model(input_ids=text.tokens).logits
    predicted, theirs = (x[:, :-1][counted] for x in (logits, teacher_logits))
    ce = functional.cross_entropy(predicted, text.tokens[:, 1:][counted])
    log_q, log_p = (functional.log_softmax(x, -1) for x in (predicted, theirs))
    return logits, ce, functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


@pytest.fixture(scope="module")
def expected(variants, text: Text) -> Expected:
    """Each statistic by variant, linear, tensor and name, from one backward over all sequences."""
    statistics: Expected = {}
    teacher = load_float()
    names = [linear.name for linear in layout.linears(teacher)]
    _, references = watched(teacher, names)
    logits = teacher(input_ids=text.tokens).logits
    _, ce, _ = losses(teacher, logits.detach(), text)
    g = dict(zip(names, torch.autograd.grad(ce, [teacher.get_submodule(n).weight for n in names]), strict=True))
    for variant, quantized in {"float": None, **variants}.items():
        model = load_float() if quantized is None else quantized_model(quantized)
        inputs, outputs = watched(model, names)
        _, ce, kl = losses(model, logits.detach(), text)
        (0.5 * ce + 0.5 * kl).backward()
        for name in names:
            weight, reference = (m.get_submodule(name).weight for m in (model, teacher))
            gradient, error = weight.grad, (weight - reference).detach()
            value, theirs = outputs[name].detach()[text.valid], references[name].detach()[text.valid]
            of_output = {
                "mean_square": value.square().mean(),
                "mean_abs": value.abs().mean(),
                "gradient_norm_sq": outputs[name].grad.square().sum(),
            }
            of_weight = {"gradient_norm_sq": torch.linalg.matrix_norm(gradient) ** 2, **shape(weight.detach())}
            if quantized is not None:
                of_output["sqnr_db"] = decibels(theirs, value - theirs)
                of_weight["sqnr_db"] = decibels(reference.detach(), error)
                of_weight["gradient_cosine"] = functional.cosine_similarity(gradient.flatten(), g[name].flatten(), 0)
                of_weight["first_order"] = (g[name] ** 2 * error**2).sum()
            parts = {"output": of_output, "weight": of_weight, "input": shape(inputs[name][text.valid])}
            statistics |= {(variant, name, t, s): float(v) for t, values in parts.items() for s, v in values.items()}
    return statistics


def decibels(signal: Tensor, noise: Tensor) -> float:
    return float(10 * torch.log10(signal.square().sum() / noise.square().sum()))


def shape(values: Tensor) -> dict[str, float]:
    """The statistics of a distribution, by scipy and numpy."""
    x = values.double().numpy().ravel()
    far = abs(x - x.mean()) > 6 * x.std()
    return {
        "kurtosis": stats.kurtosis(x, fisher=False),
        "std": x.std(),
        "absmax": abs(x).max(),
        "outliers": far.mean(),
    }


def test_each_statistic_is_what_hooks_and_autograd_measure(signals, expected: Expected):
    linears = signals.table[signals.table.tensor.isin(["output", "weight", "input"])]
    statistics = {(r.variant, r.name, r.tensor, r.statistic): r.value for r in named(linears)}
    assert statistics.keys() == expected.keys()
    for key, value in statistics.items():
        assert value == pytest.approx(expected[key], rel=1e-6, abs=1e-12), key


def named(table: pd.DataFrame) -> Iterator:
    """Rows of a table; a column called `name` would be hidden by the tuple's own."""
    return table.itertuples(index=False)


def test_the_table_is_tidy(signals):
    table = signals.table
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(["variant", "name", "role", "tensor", "statistic"]).any()
    assert table.value.map(lambda v: v == v and abs(v) != float("inf")).all()
    one = table[table["name"] == "model.layers.1.mlp.up_proj"]
    assert (set(one.role), set(one.layer)) == ({"up"}, {1})


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_the_batch_changes_nothing_but_the_order_of_sums(variants, signals, text: Text, batch: int):
    again = run(variants, Text(text.tokens, text.valid, batch), sensitivity_sequences=2, widths=range(2, 9))
    pd.testing.assert_frame_equal(again.table, signals.table, rtol=1e-6)


def test_what_lies_behind_the_valid_tokens_is_not_looked_at(variants, signals, text: Text):
    changed = text.tokens.where(text.valid, (text.tokens + 7) % 259)
    again = run(variants, Text(changed, text.valid, 4), sensitivity_sequences=2, widths=range(2, 9))
    pd.testing.assert_frame_equal(again.table, signals.table, rtol=1e-9)


def test_with_kl_alone_the_float_model_has_no_gradient_to_show_and_still_gives_g(variants, signals, text: Text):
    again = run(variants, text, weights=LossWeights(0.0, 1.0, 1.0, 16)).table
    norms = again[(again.variant == "float") & (again.statistic == "gradient_norm_sq")]
    assert (norms.value == 0).all()
    assert len(norms) == 28
    ours, theirs = (t[(t.statistic == "first_order")].value.to_numpy() for t in (again, signals.table))
    assert ours == pytest.approx(theirs)
    cosines = again[again.statistic == "gradient_cosine"].value
    assert cosines.abs().max() <= 1
    assert cosines.abs().min() > 0


def test_a_linear_that_the_forward_does_not_use_is_named(text: Text):
    model = load_float()
    model.model.layers[1].mlp.extra = nn.Linear(4, 4).double()
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.extra got no gradient"):
        Probe(model, text, LossWeights(1.0, 0.0)).float_model(lambda _: None)


def test_a_linear_that_only_chooses_has_a_gradient_of_zero(text: Text):
    """As those of a sparse attention's indexer have, which run without gradient."""
    model = load_float()
    mlp = model.model.layers[1].mlp
    mlp.indexer = nn.Linear(32, 4).double()

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            module.indexer(args[0])

    mlp.register_forward_pre_hook(choose)
    rows = Probe(model, text, LossWeights(1.0, 0.0)).float_model(lambda _: None)
    norms = {row[3]: row[6] for row in rows if row[5] == "gradient_norm_sq" and row[4] == "weight"}
    assert norms.pop("model.layers.1.mlp.indexer") == 0
    assert min(norms.values()) > 0


class Split(nn.Module):
    """A fused projection taken apart into linears of its own."""

    def __init__(self, fused: nn.Linear, rows: dict[str, list[int]]) -> None:
        super().__init__()
        self.rows = rows
        for part, mine in rows.items():
            linear = nn.Linear(fused.in_features, len(mine), bias=fused.bias is not None).double()
            linear.weight = nn.Parameter(fused.weight.detach()[mine].clone())
            if fused.bias is not None:
                linear.bias = nn.Parameter(fused.bias.detach()[mine].clone(), requires_grad=False)
            self.add_module(part, linear)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.tensor([row for mine in self.rows.values() for row in mine])
        return torch.cat([self.get_submodule(part)(x) for part in self.rows], dim=-1)[..., order.argsort()]


FUSED = {  # family: fused module, and which rows its parts are (4 heads of 8; Phi-3 has 2 key heads)
    "gpt-neox": (
        "attention.query_key_value",
        {part: [head * 24 + i * 8 + j for head in range(4) for j in range(8)] for i, part in enumerate("qkv")},
    ),
    "phi3": (
        "self_attn.qkv_proj",
        {"q": [*range(32)], "k": [*range(32, 48)], "v": [*range(48, 64)]},
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_the_parts_of_a_fused_projection_are_looked_at_as_if_they_stood_alone(name: str, text: Text):
    """Against the same model with the fused linear taken apart: every role's rows agree."""
    module, rows = FUSED[name]
    whole, apart = family(name).double(), family(name).double()
    for layer in layout.decoder_layers(apart)[1]:
        parent, _, child = module.rpartition(".")
        setattr(layer.get_submodule(parent), child, Split(layer.get_submodule(module), rows))
    prefix = layout.decoder_layers(whole)[0]
    parts = [f"{prefix}.{layer}.{module}.{part}" for layer in (0, 1) for part in rows]
    inputs, outputs = watched(apart, parts)
    _, ce, _ = losses(apart, whole(input_ids=text.tokens).logits, text)
    ce.backward()
    table_rows = Probe(whole, text, LossWeights(1.0, 0.0)).float_model(lambda _: None)
    values = {(layer, role, tensor, statistic): value for _, layer, role, _, tensor, statistic, value in table_rows}
    for full in parts:
        layer, role = int(full.removeprefix(f"{prefix}.").split(".")[0]), full.rsplit(".", 1)[-1]
        weight, output = apart.get_submodule(full).weight, outputs[full]
        wanted = {
            ("weight", "gradient_norm_sq"): weight.grad.square().sum(),
            ("output", "gradient_norm_sq"): output.grad.square().sum(),
            ("output", "mean_square"): output.detach()[text.valid].square().mean(),
            ("output", "mean_abs"): output.detach()[text.valid].abs().mean(),
            **{("weight", s): v for s, v in shape(weight.detach()).items()},
            **{("input", s): v for s, v in shape(inputs[full][text.valid]).items()},
        }
        for (tensor, statistic), value in wanted.items():
            assert values[layer, role, tensor, statistic] == pytest.approx(float(value), rel=1e-6), (full, statistic)


def test_labels_that_do_not_count_leave_no_gradient(text: Text):
    """Of the cross-entropy, against autograd over those that do; a batch may have none."""
    counted = text.valid & (torch.arange(20) >= torch.tensor([4, 20, 20, 9, 1, 20])[:, None])
    probe = Probe(load_float(), Text(text.tokens, text.valid, 2, counted=counted), LossWeights(0.5, 0.5, 1.0, 16))
    probe.float_model(lambda _: None)
    model = load_float().requires_grad_(True)
    logits = model(input_ids=text.tokens).logits[:, :-1][counted[:, 1:]]
    functional.cross_entropy(logits, text.tokens[:, 1:][counted[:, 1:]]).backward()
    for linear in layout.linears(model):
        torch.testing.assert_close(probe.gradients[linear.name], model.get_submodule(linear.name).weight.grad)
