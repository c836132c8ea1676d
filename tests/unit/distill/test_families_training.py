"""Every model family in training: frozen rows keep their codes, the others learn."""

import pytest
import torch
from torch import Tensor

from pipeline.distill.freeze import frozen_rows
from pipeline.distill.prepare import prepare
from pipeline.distill.student import Learns, Student
from pipeline.losses.chunked import LossWeights, distillation_loss
from pipeline.models import forward, layout
from tests.families import family
from tests.unit.layouts import calibrated, moved, with_attention


def student(name: str, policy: str, mode: str, tokens: Tensor, valid: Tensor) -> Student:
    start = calibrated(family(name), tokens, valid).model
    model = family(name)
    return prepare(model, start, frozen_rows(policy, layout.linears(model)), Learns(mode), torch.float32)


def learn(made: Student, name: str, tokens: Tensor, valid: Tensor) -> None:
    """One step of the distillation loss, of which every master gets a gradient."""
    teacher = family(name)
    heads = forward.head_weight(made.model), forward.head_weight(teacher)
    states = [forward.hidden_states(model, tokens) for model in (made.model, teacher)]
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
    for linear in layout.linears(made.model):
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
