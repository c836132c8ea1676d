"""Distilling with quantization as it is usually written: what tests/bench/distill.py compares with.

The teacher runs in every step, the logits of both are whole, and weights are fake-quantized in every forward: by a few
lines of straight-through rounding, or by torchao's QAT prepare. It needs torch and transformers alone (and torchao), so
that it runs in an environment of torchao's own.
"""

import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel


class StraightThrough(nn.Linear):
    """A linear whose weight is rounded to a symmetric INT4 grid, a min-max scale a row, in each forward."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax(dim=1, keepdim=True) / 7
        rounded = (self.weight / scale).round().clamp(-8, 7) * scale
        return functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


def by_hand(model: PreTrainedModel) -> None:
    """Make the decoder's linears StraightThrough."""
    for module in list(model.base_model.modules()):
        if type(module) is nn.Linear:
            module.__class__ = StraightThrough


def by_torchao(model: PreTrainedModel) -> None:
    """torchao's QAT prepare of the decoder's linears: symmetric INT4 weights, a scale a row."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.qat import QATConfig

    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0))  # type: ignore[attr-defined]
    quantize_(model.base_model, QATConfig(config, step="prepare"))


WAYS = {"plain": by_hand, "torchao": by_torchao}


def train(
    way: str,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Tensor,
    batch: int,
    steps: int,
    lr: float,
    dtype: str,
) -> list[dict[str, float]]:
    """Steps of KL to the teacher under autocast to `dtype`, linears and norms learning: seconds and KL of each."""
    device = tokens.device.type
    WAYS[way](student)
    teacher.eval().requires_grad_(False)
    student.eval().requires_grad_(False)
    learning = [p for module in student.base_model.modules() for p in module.parameters(recurse=False)]
    learning = [p for p in learning if p is not student.get_input_embeddings().weight]
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    log = []
    for step in range(steps):
        begun = time.monotonic()
        ids = tokens[step * batch : (step + 1) * batch]
        with torch.autocast(device, dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            with torch.no_grad():
                theirs = teacher(input_ids=ids, use_cache=False).logits
            ours = student(input_ids=ids, use_cache=False).logits
        log_q = functional.log_softmax(ours[:, :-1].float(), dim=-1)
        log_p = functional.log_softmax(theirs[:, :-1].float(), dim=-1)
        loss = functional.kl_div(log_q.flatten(0, 1), log_p.flatten(0, 1), log_target=True, reduction="batchmean")
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log.append({"kl": loss.item(), "seconds": time.monotonic() - begun})
    return log
