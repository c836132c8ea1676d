"""Whether a model's logits are its last hidden states times the weight of its head, and nothing else.

Distillation, signals and the Fisher information work out logits so, and must not do it for a model that caps them
(Gemma 2), scales them (Granite, Cohere, Falcon-H1), adds a bias (Phi), or scales what the head reads (MiniCPM). Its
weights do not tell: a cap that small logits do not feel is a cap. So the model's own code is run with states of our own
in the place of those that its head would read, from 0 to some whose logits are 10,000.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.layout import backbone

SEQUENCES = 32  # of two tokens each, which even the shortest context has room for
LEAST, GREATEST = -2.0, 4.0  # powers of ten of the logits that are tried


@torch.no_grad()
def check(model: PreTrainedModel, head: nn.Linear) -> None:
    """Run the model twice over 64 tokens.

    Args:
        model: a causal LM in eval mode. head: its output head, without bias.

    Raises:
        ValueError: the head reads something else than the last hidden states, or the logits are something else than
            what the head gives.
    """
    name, weight = type(model).__name__, head.weight
    tokens = (7919 * torch.arange(2 * SEQUENCES, device=model.device) % len(weight)).view(SEQUENCES, 2)
    read, _ = _run(model, head, tokens, None)
    states = backbone(model)(input_ids=tokens, use_cache=False).last_hidden_state
    if _differing(read, states) is not None:
        raise ValueError(
            f"{name} changes its hidden states before the head, which no stage that works out logits from them can hold"
        )
    ours = _states(weight)
    expected = nn.functional.linear(ours, weight)
    _, logits = _run(model, head, tokens, ours)
    row = _differing(logits, expected)
    if row is not None:
        place = int((logits[row] - expected[row]).abs().argmax())
        raise ValueError(
            f"{name} changes its logits after the head (a cap, a scale or the like), which no stage that works them "
            f"out from hidden states can hold: where the head gives {float(expected[row][place]):.4g}, the model gives "
            f"{float(logits[row][place]):.4g}"
        )


@torch.no_grad()
def gives_logits(model: PreTrainedModel, head: nn.Module) -> bool:
    """Whether the logits are what the head gives, whatever that reads: its weight times that, with its bias."""
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(head, nn.Linear):
        return False
    tokens = torch.zeros(SEQUENCES, 2, dtype=torch.int64, device=weight.device)
    ours = _states(weight)
    _, logits = _run(model, head, tokens, ours)
    return _differing(logits, nn.functional.linear(ours, weight, head.bias)) is None


def _run(model: PreTrainedModel, head: nn.Linear, tokens: Tensor, instead: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the head reads, and the model's logits; with `instead`, the head reads that."""
    read: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        read.append(args[0])
        return None if instead is None else (instead, *args[1:])

    handle = head.register_forward_pre_hook(see, prepend=instead is None)  # before and behind what quantizes inputs
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
    if len(read) != 1:
        raise ValueError(f"{type(model).__name__} has no plain linear head: it calls it {len(read)} times a forward")
    return read[0], logits


def _states(weight: Tensor) -> Tensor:
    """States [SEQUENCES, 2, hidden] whose greatest logits go from 10^LEAST to 10^GREATEST; the first are 0."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(SEQUENCES, 2, weight.shape[1], generator=generator).to(weight.device)
    greatest = (states @ weight.float().T).abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    wanted = torch.logspace(LEAST, GREATEST, SEQUENCES, device=weight.device)[:, None, None]
    states = states / greatest * wanted
    states[0] = 0
    return states.to(weight.dtype)


def _differing(a: Tensor, b: Tensor) -> tuple[int, int] | None:
    """The last position at which rows [sequences, 2, width] differ by more than rounding: it has the largest logits.

    NaN is like NaN, so that a broken model is not taken for one of another kind.
    """
    tolerance = max(1e-5, 4 * torch.finfo(b.dtype).eps)
    if a.shape != b.shape:
        return 0, 0
    a, b = a.float(), b.float()
    size = b.abs().amax(dim=-1, keepdim=True).clamp(min=1e-3)
    close = ((a - b).abs() <= tolerance * size) | (a == b) | (a.isnan() & b.isnan())
    bad = (~close.all(dim=-1)).nonzero()
    return (int(bad[-1, 0]), int(bad[-1, 1])) if len(bad) else None
