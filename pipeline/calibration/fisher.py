"""What the output of each linear is worth to the model's own predictions: the Fisher information of its weight.

An error E [out, in] of a weight costs, in KL to the float model, about half of vec(E)^T F vec(E), where F is the mean
over tokens of vec(g x^T) vec(g x^T)^T, x what the linear reads, g the gradient of the cross-entropy by what it gives.
Of the corpus, the tokens that were sampled from the float model will do for it, and no others: not what opens a
conversation, and not the greedy ones, which as targets would weigh several times what they should. F itself would not
fit into memory; it is taken as a product of a matrix for the inputs and one for the outputs (YAQA, 2505.22988, its
sketch A):

    E[x x^T |g|]    and    E[g g^T |x| / |g|]

Theirs have the squares, |g|^2 and |x|^2. A few tokens have most of those, and a mean over a few is mostly noise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.calibration.gram import add_gram, mirror
from pipeline.losses.chunked import LossWeights, distillation_loss
from pipeline.models import forward, layout, memory

FILE = "fisher.safetensors"
LOSS = LossWeights(1.0, 0.0)


@dataclass(frozen=True)
class Fisher:
    """Of one linear. tokens: |g| of each position, float32 [sequences, length], 0 where it does not count, 1 in the
    mean. outputs: E[g g^T |x| / |g|], float32 [out, out], 1 in the mean of its diagonal."""

    tokens: Tensor
    outputs: Tensor


@dataclass
class _Sums:
    """Of one linear, over the batches so far. sizes: |g| of each position, [batch, length] each."""

    outputs: Tensor
    sizes: list[Tensor] = field(default_factory=list)

    def add(self, gradient: Tensor, lengths: Tensor, mask: Tensor, dtype: torch.dtype) -> None:
        """Take in dL/d(output) [..., out], |x| of each row [rows], and which positions count [batch, length]."""
        rows = gradient.flatten(0, -2).float() * mask.flatten()[:, None]  # a copy: the gradient goes on its way
        size = rows.norm(dim=-1)
        scaled = rows.mul_(torch.where(size > 0, lengths / size, 0).sqrt_()[:, None]).to(dtype)
        add_gram(self.outputs, scaled)
        self.sizes.append(size.view_as(mask))

    def finished(self) -> Fisher | None:
        """Once all batches are in; None where the linear's output changes nothing."""
        tokens, outputs = torch.cat(self.sizes), mirror(self.outputs)
        level = outputs.diagonal().mean()
        if not (level > 0 and tokens.any()):
            return None
        return Fisher(tokens.div_(tokens.mean()), outputs.div_(level))


def fisher(
    model: PreTrainedModel,
    tokens: Tensor,
    valid: Tensor,
    sampled: Tensor,
    batch: int,
    dtype: str,
    names: set[str],
    advance: Callable[[], object],
) -> dict[str, Fisher]:
    """The Fisher information of linears, from one forward and backward over the tokens.

    It takes 4 bytes for each pair of outputs of a linear: 0.7 GB for the whole of SmolLM2, 42 GB for a Llama of 7B.

    Args:
        model: the float model; unchanged when this returns.
        tokens: int64 [sequences, length]. valid: bool of the same shape; other positions are not looked at.
        sampled: bool of the same shape; the tokens that the model itself has drawn, which alone are predicted here.
        batch: sequences a forward. dtype: of the forward's autocast, and of a batch's part of `outputs`; the sum over
            batches is float32.
        names: of the linears, of which those that do not read every position once are left out.
        advance: called after each batch.

    Raises:
        ValueError: no token is a sample, the model does something to its logits after the head, or a gradient is not
            finite.
    """
    if not bool(sampled[:, 1:].any()):
        raise ValueError(
            "none of the tokens was sampled from the teacher at temperature 1, without which there is no Fisher "
            "information; set calibrate.fisher to false, or synthesize.strategy to hybrid and its temperature to 1"
        )
    read = forward.torch_dtype(dtype)
    head = forward.head_weight(model).detach().to(read)
    wanted = [linear for linear in layout.linears(model) if linear.name in names]
    modules = {linear.name: model.get_submodule(linear.name) for linear in wanted}
    sums = {name: _Sums(torch.zeros(module.out_features, module.out_features)) for name, module in modules.items()}
    current: dict[str, Tensor] = {}
    with _adding_gradients(model, sums, current, read):
        for part, mask, drawn in zip(tokens.split(batch), valid.split(batch), sampled.split(batch), strict=True):
            current["mask"] = mask
            with torch.enable_grad(), forward.autocast(dtype):
                hidden = forward.hidden_states(model, part).to(read)
                distillation_loss(hidden, hidden.detach(), (head, head), part, drawn, LOSS, 1).total.backward()
            memory.give_back()
            advance()
    return _finished(sums, len(tokens.split(batch)))


@contextmanager
def _adding_gradients(
    model: PreTrainedModel, sums: dict[str, _Sums], current: dict[str, Tensor], dtype: torch.dtype
) -> Iterator[None]:
    """While this lasts, a forward and backward adds to the linears' sums; `current["mask"]` is the batch's."""

    def see(name: str, x: Tensor, out: object) -> None:
        lengths, mask = x.detach().flatten(0, -2).float().norm(dim=-1), current["mask"]
        if isinstance(out, Tensor) and out.requires_grad and len(lengths) == mask.numel():
            out.register_hook(lambda g: sums[name].add(g, lengths, mask, dtype))

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: see(name, args[0], out))
        for name in sums
    ]
    handles.append(model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_(True)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finished(sums: dict[str, _Sums], batches: int) -> dict[str, Fisher]:
    """The factors of the linears that have read every batch, and whose outputs change something.

    Raises:
        ValueError: a gradient is not finite.
    """
    bad = [name for name, linear_sums in sums.items() if not bool(linear_sums.outputs.isfinite().all())]
    if bad:
        raise ValueError(f"the gradient by the output of {bad[0]} is not finite on the corpus; is the teacher sound?")
    whole = {}
    for name in [*sums]:
        linear_sums = sums.pop(name)  # what it is made of is free then
        factors = linear_sums.finished() if len(linear_sums.sizes) == batches else None
        if factors is not None:
            whole[name] = factors
    return whole


def save(information: Mapping[str, Fisher], folder: Path) -> None:
    """Keep it in a folder, whole or not at all."""
    parts = {f"tokens/{name}": factors.tokens for name, factors in information.items()}
    parts |= {f"outputs/{name}": factors.outputs for name, factors in information.items()}
    part = (folder / FILE).with_suffix(".part")
    save_file(parts, part)
    part.replace(folder / FILE)


class Kept(Mapping[str, Fisher]):
    """The Fisher information in a file, of which a linear's is read when it is asked for, and no other is held.

    Raises:
        SafetensorError, OSError: the file is not there, or not whole.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with safe_open(file, "pt") as stored:
            self._names = [key.removeprefix("tokens/") for key in stored.keys() if key.startswith("tokens/")]  # noqa: SIM118  it is no dict

    def __getitem__(self, name: str) -> Fisher:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._file, "pt") as stored:
            return Fisher(*(stored.get_tensor(f"{part}/{name}") for part in ("tokens", "outputs")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load(folder: Path) -> Mapping[str, Fisher] | None:
    """What was kept in a folder; None where nothing whole was."""
    try:
        return Kept(folder / FILE)
    except (SafetensorError, OSError):
        return None
