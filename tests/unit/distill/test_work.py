"""How often the dear things are done, and how large anything gets: what makes a step of training cheap."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.distill import loop
from pipeline.distill.schedule import Schedule
from pipeline.distill.targets import record
from pipeline.losses.chunked import LossWeights, distillation_loss
from pipeline.quant import weights
from tests import tiny
from tests.unit.distill.students import student

STEPS, ROWS = 3, 4


@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_are_quantized_once_a_step_and_not_once_a_forward(
    tokens: Tensor, lengths: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
):
    """And once before the first; the frozen ones never."""
    made, quantized, forwards = student(policy="ov"), list[Any](), list[Any]()
    sound = weights.quantize_and_tell
    monkeypatch.setattr(weights, "quantize_and_tell", lambda w, *rest: (quantized.append(w), sound(w, *rest))[1])
    made.model.model.register_forward_hook(lambda *_: forwards.append(1))
    data = record(tiny.llama(), tokens, lengths, 6, "float32", lambda _: None)
    knobs = {"lr": 1e-3, "scale_lr": 0.0, "warmup": 0.0, "min_lr": 0.0, "weight_decay": 0.0, "clip": 1.0}
    plan = Schedule(
        **knobs, steps=STEPS, batch=ROWS, accumulate=accumulate, checkpoint_every=9, dtype="float32", seed=0
    )
    head = tiny.llama().lm_head.weight
    loop.train(made, head, data, plan, LossWeights(0.0, 1.0), tmp_path, lambda _: lambda row: None)
    trained = [made.masters[f"{name}.weight"] for name in made.trained]
    assert len(trained) == 10
    assert len(forwards) == STEPS * accumulate
    assert len(quantized) == (STEPS + 1) * len(trained)
    assert {id(weight) for weight in quantized} == {id(weight) for weight in trained}


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("chunk", [8, 16])
@pytest.mark.parametrize(
    "terms", [{"ce": 0.0}, {"ce": 0.5, "temperature": 2.0}, {"ce": 0.5, "divergence": "symmetric"}]
)
def test_logits_of_no_more_than_a_chunk_of_tokens_are_ever_held(chunk: int, terms: dict[str, Any]):
    """Forward and backward, the student's head learning or not."""
    batch, length, hidden, vocabulary = 4, 33, 8, 1000
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(batch, length, hidden, generator=generator) for _ in range(2))
    heads = tuple(torch.randn(vocabulary, hidden, generator=generator) for _ in range(2))
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    weighed = dataclasses.replace(LossWeights(0.0, 1.0, chunk=chunk), **terms)
    for learns in (False, True):
        states, head = ours.clone().requires_grad_(), heads[0].clone().requires_grad_(learns)
        with Largest() as largest:
            loss = distillation_loss(
                states, theirs, (head, heads[1]), tokens, torch.ones_like(tokens, dtype=torch.bool), weighed
            )
            loss.total.backward()
        assert chunk * vocabulary <= largest.elements <= max(chunk, hidden) * vocabulary
        assert largest.elements * 8 <= batch * (length - 1) * vocabulary
