"""The Fisher information's two factors against gradients by autograd in float64, token by token."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.calibration import fisher
from pipeline.calibration.fisher import Fisher
from pipeline.calibration.layers import Runner
from pipeline.models import forward, layout
from pipeline.rounding.across import round_across
from tests import tiny
from tests.families import FAMILIES, family
from tests.unit.calibration.runs import W4A16, differing, is_bare, run


def measured(
    model: PreTrainedModel, tokens: Tensor, valid: Tensor, sampled: Tensor | None = None, batch: int = 4
) -> dict[str, Fisher]:
    names = {linear.name for linear in layout.linears(model)}
    drawn = valid if sampled is None else sampled
    return fisher.fisher(model, tokens, valid, drawn, batch, "float32", names, lambda: None)


def by_autograd(
    model: PreTrainedModel, tokens: Tensor, valid: Tensor, sampled: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each linear: |g| of each position, and E[g g^T |x| / |g|] up to a factor; a whole float64 forward."""
    model = model.double().requires_grad_(True)
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, x: Tensor, out: Tensor) -> None:
        out.retain_grad()
        kept[name] = x.detach(), out

    for linear in layout.linears(model):
        model.get_submodule(linear.name).register_forward_hook(
            lambda _, args, out, name=linear.name: keep(name, args[0], out)
        )
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    losses[sampled[:, 1:].flatten()].sum().backward()
    information = {}
    for name, (x, out) in kept.items():
        g = out.grad * valid[..., None]
        size = g.norm(dim=-1)
        counted = size > 0
        weights = x.norm(dim=-1)[counted] / size[counted]
        information[name] = size, (g[counted] * weights[:, None]).T @ g[counted]
    return information


@pytest.fixture
def sampled(valid: Tensor) -> Tensor:
    """Of each sequence, what stands behind an opening; of the second and the last nothing."""
    first = torch.tensor([4, 20, 1, 9, 1, 20])
    return valid & (torch.arange(20) >= first[:, None])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_both_factors_are_those_of_float64_gradients_of_what_was_sampled(
    tokens: Tensor, valid: Tensor, sampled: Tensor, batch: int
):
    information = measured(tiny.llama(), tokens, valid, sampled, batch)
    expected = by_autograd(tiny.llama(), tokens, valid, sampled)
    assert information.keys() == expected.keys()
    for name, (sizes, outputs) in expected.items():
        mine = information[name]
        torch.testing.assert_close(mine.tokens, (sizes / sizes.mean()).float(), rtol=1e-3, atol=1e-4)
        level = outputs.diagonal().mean()
        torch.testing.assert_close(mine.outputs, (outputs / level).float(), rtol=1e-3, atol=1e-3)
        assert not mine.tokens[~valid].any()


def test_it_does_not_move_when_the_likelihood_of_what_was_given_does(tokens: Tensor, valid: Tensor):
    """In a model whose attention carries nothing on, so that what was given is not read where the rest is predicted."""
    model = tiny.llama()
    for layer in model.model.layers:
        layer.self_attn.v_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    sampled = valid & (torch.arange(20) >= 6)
    changed = tokens.clone()
    changed[:, :5] = (tokens[:, :5] - 3 + 100) % 256 + 3
    plain, other = (measured(model, text, valid, sampled) for text in (tokens, changed))
    assert plain.keys() == other.keys()
    assert "model.layers.0.mlp.down_proj" in plain
    for name, weighed in plain.items():
        assert torch.equal(weighed.outputs, other[name].outputs), name
        assert torch.equal(weighed.tokens, other[name].tokens), name
        assert not weighed.tokens[:, :5].any(), name
    taken = [measured(model, text, valid)["model.layers.0.mlp.down_proj"].outputs for text in (tokens, changed)]
    assert not torch.allclose(*taken, rtol=0.01)  # with what was given among the targets it would


def test_without_a_sample_there_is_none(tokens: Tensor, valid: Tensor):
    with pytest.raises(ValueError, match=r"none of the tokens was sampled .* set calibrate\.fisher to false"):
        measured(tiny.llama(), tokens, valid, torch.zeros_like(valid))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_linears_are_measured_and_the_model_left_as_it_was(tokens: Tensor, valid: Tensor, name: str):
    model = family(name)
    before = {key: values.clone() for key, values in model.state_dict().items()}
    try:
        forward.head_weight(model)
    except ValueError:
        pytest.skip("its logits are no plain product")
    information = measured(model, tokens, valid)
    assert information.keys() == {linear.name for linear in layout.linears(model)}
    assert all(torch.equal(values, before[key]) for key, values in model.state_dict().items())
    assert is_bare(model)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_a_gradient_that_is_not_finite_is_refused_by_name(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(
        ValueError, match=r"by the output of model\.layers\.\d\S+ is not finite .* is the teacher sound"
    ):
        measured(model, tokens, valid)


def test_what_is_kept_is_had_again_and_half_of_it_is_nothing(tokens: Tensor, valid: Tensor, tmp_path: Path):
    assert fisher.load(tmp_path) is None
    information = measured(tiny.llama(), tokens, valid)
    fisher.save(information, tmp_path)
    again = fisher.load(tmp_path)
    assert again is not None
    assert again.keys() == information.keys()
    for name, factors in information.items():
        assert torch.equal(again[name].tokens, factors.tokens)
        assert torch.equal(again[name].outputs, factors.outputs)
    file = tmp_path / fisher.FILE
    file.write_bytes(file.read_bytes()[:1000])
    assert fisher.load(tmp_path) is None


def test_a_layers_hessians_weigh_each_token(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    group = [linear for linear in layout.linears(model) if linear.layer == 0]
    weighed = {"model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"}
    weights = {name: torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) for name in weighed}
    inputs: dict[str, Tensor] = {}
    handles = forward.on_layer_inputs(model, group, lambda linear, x: inputs.update({linear.name: x[valid].double()}))
    model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    gathered = Runner.start(model, tokens, valid, 4, "float32").gather(model.model.layers[0], group, weights)
    for linear in group:
        x = inputs[linear.name]
        share = weights[linear.name][valid].double() if linear.name in weighed else torch.ones(len(x))
        torch.testing.assert_close(
            gathered[linear.name].hessian, ((x * share[:, None]).T @ x).float(), rtol=1e-4, atol=1e-4
        )


def test_gptq_alone_uses_it(tokens: Tensor, valid: Tensor):
    """Where weights and norms are rescaled against each other, it would be that of another model."""
    information = measured(tiny.llama(), tokens, valid)
    for method in ("rtn", "mse", "awq", "awq+gptq", "smoothquant+gptq"):
        plain, informed = (run(tokens, valid, method, W4A16, fisher=variant).model for variant in (None, information))
        assert not differing(informed, plain), method
    assert differing(run(tokens, valid, "gptq", fisher=information).model, run(tokens, valid, "gptq").model)


def test_tokens_and_outputs_each_change_what_gptq_makes(tokens: Tensor, valid: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(round_across, "__defaults__", (8,))
    information = measured(tiny.llama(), tokens, valid)
    alike = {name: Fisher(valid.float(), torch.eye(len(factors.outputs))) for name, factors in information.items()}
    weighed = {name: Fisher(information[name].tokens, factors.outputs) for name, factors in alike.items()}
    together = {name: Fisher(factors.tokens, information[name].outputs) for name, factors in alike.items()}
    plain, same, one, other = (run(tokens, valid, fisher=variant).model for variant in (None, alike, weighed, together))
    codes = {f"codes of {linear.name}" for linear in layout.linears(tiny.llama())}
    assert not codes & {*differing(same, plain)}
    for changed in (one, other):
        assert codes & {*differing(changed, plain)}


def test_a_killed_calibration_ends_in_the_same_bits_with_what_was_kept_of_it(
    tokens: Tensor, valid: Tensor, tmp_path: Path
):
    information = measured(tiny.llama(), tokens, valid)
    fisher.save(information, tmp_path)
    expected = run(tokens, valid, fisher=information).model
    calls = iter([True, False])

    def kill_after_the_first_layer() -> None:
        if next(calls):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tokens, valid, scratch=tmp_path, advance=kill_after_the_first_layer, fisher=information)
    assert sorted(file.name for file in tmp_path.iterdir()) == [fisher.FILE, "layer-0.safetensors"]
    again = run(tokens, valid, scratch=tmp_path, fisher=fisher.load(tmp_path)).model
    assert differing(again, expected) == []


def test_it_lowers_the_divergence_of_a_model_that_has_something_to_say(tokens: Tensor, valid: Tensor):
    """Of text that the model itself would write, summed over seeds."""
    total = {True: 0.0, False: 0.0}
    for seed in range(4):
        model = tiny.llama(seed, layers=2, hidden=32)
        text = model.generate(tokens[:1, :1].expand(64, 1), do_sample=True, max_new_tokens=39, top_k=0)
        mask, held = torch.ones_like(text, dtype=torch.bool), text[48:]
        text, mask = text[:48], mask[:48]
        information = measured(tiny.llama(seed), text, mask)
        teacher = tiny.llama(seed)(input_ids=held).logits.log_softmax(-1)
        for used in total:
            student = tiny.llama(seed)
            run(text, mask, "gptq", model=student, fisher=information if used else None).model.put_into(student)
            mine = student(input_ids=held).logits.log_softmax(-1)
            total[used] += float((teacher.exp() * (teacher - mine)).sum(-1).mean())
    assert total[True] < total[False]


def test_none_of_a_linear_whose_output_changes_nothing(tokens: Tensor, valid: Tensor):
    model = tiny.llama()
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    assert "model.layers.0.self_attn.v_proj" not in measured(model, tokens, valid)
    assert isinstance(measured(model, tokens, valid)["model.layers.0.self_attn.o_proj"], Fisher)


def test_none_of_a_linear_that_runs_without_gradient(tokens: Tensor, valid: Tensor):
    """As the indexer of a sparse attention does, which only chooses."""
    model = tiny.llama()
    plain, mlp = measured(model, tokens, valid), model.model.layers[0].mlp
    mlp.indexer = nn.Linear(32, 4)

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            module.indexer(args[0])

    mlp.register_forward_pre_hook(choose)
    assert measured(model, tokens, valid).keys() == plain.keys()
