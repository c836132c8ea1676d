"""Rotate a model's residual stream, so that its weights are easier to round: folded into them, the same function.

Everything that writes into the residual stream (embeddings, o, down) writes a rotated vector, and everything that reads
it undoes that: R of QuaRot (2404.00456, section 4) and R1 of SpinQuant (2405.16406, section 3.1), with the norms'
channel weights first moved into the linears behind them. The rotation spreads the few large channels over all. R leaves
the vector of ones where it is, so a LayerNorm, which takes the mean off, commutes with it as an RMSNorm does.

An embedding and a head that share a weight part here, since the last norm's weight goes into the head alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import models
from pipeline.calibration.norm_layers import is_norm, norm_offset
from pipeline.quant.model import FLOAT_DTYPE, untie_head

WRITERS = ("o", "down", "out")  # roles of the linears that write into the residual stream
TOLERANCE = 1e-3  # of the largest logit: what another order of float32 sums may change
TOKENS = 32  # on which a model is compared with what it was


@dataclass(frozen=True)
class Rotation:
    """An orthogonal R [width, width] = diag(before) (left x right) diag(after) P, for row vectors: `turn(x)` is x R.

    left, right: orthogonal factors of a Kronecker product, so that a turn costs width * (|left| + |right|) products a
    row and not width^2. before, after: random signs. mirror: unit vector of the reflection P that brings the ones back
    to themselves. All float64.
    """

    before: Tensor
    left: Tensor
    right: Tensor
    after: Tensor
    mirror: Tensor

    def turn(self, rows: Tensor) -> Tensor:
        """rows R, of rows [..., width] in any float dtype."""
        left, right, mirror = (part.to(rows) for part in (self.left, self.right, self.mirror))
        grid = (rows * self.before.to(rows)).unflatten(-1, (len(left), len(right)))
        turned = (left.T @ grid @ right).flatten(-2).mul_(self.after.to(rows))
        return turned.sub_((turned @ mirror)[..., None] * (2 * mirror))

    def back(self, rows: Tensor) -> Tensor:
        """rows R^T, which undoes `turn`; differentiable."""
        left, right, mirror = (part.to(rows) for part in (self.left, self.right, self.mirror))
        straight = (rows - (rows @ mirror)[..., None] * (2 * mirror)) * self.after.to(rows)
        grid = straight.unflatten(-1, (len(left), len(right)))
        return (left @ grid @ right.T).flatten(-2) * self.before.to(rows)


def random_rotation(width: int, seed: int) -> Rotation:
    """A Hadamard matrix with random signs of rows and columns, and the reflection: all entries are about as large.

    Where none of a width is known, it is made of a smaller one and of a random orthogonal matrix for the odd factor.
    """
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.randint(0, 2, (2, width), generator=generator).double() * 2 - 1
    right = next((found for found in map(paley, _divisors(width)) if found is not None), None)
    if right is None:
        odd = width // (width & -width)
        right, upper = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64))
        right = (right * upper.diagonal().sign()).contiguous()
    twos = (width // len(right)).bit_length() - 1
    half = min(twos, round(math.log2(width) / 2))  # so that both factors are about as wide
    right = torch.kron(sylvester(twos - half), right)
    plain = Rotation(before, sylvester(half), right, after, torch.zeros(width, dtype=torch.float64))
    ones = torch.full((width,), width**-0.5, dtype=torch.float64)
    away = plain.turn(ones) - ones
    return replace(plain, mirror=nn.functional.normalize(away, dim=0))


def _divisors(width: int) -> list[int]:
    """The odd factor of a width, times a power of two: all of them that divide it, the smallest first."""
    odd = width // (width & -width)
    return [odd * 2**i for i in range((width // odd).bit_length())]


def sylvester(twos: int) -> Tensor:
    """Sylvester's Hadamard matrix of width 2^twos, orthogonal: float64, symmetric."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(twos):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2), matrix)
    return matrix


def paley(size: int) -> Tensor | None:
    """Paley's Hadamard matrix (1933), orthogonal, float64 [size, size]; None where there is none.

    It exists for q + 1, q a prime of 3 modulo 4, and for 2 (q + 1), q a prime of 1 modulo 4; and there is that of 1.
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(size - 1) and size % 4 == 0:
        skew = _bordered(size - 1, -1.0)
        return (skew + torch.eye(size, dtype=torch.float64)) / math.sqrt(size)
    if size % 4 == 0 and _is_prime(size // 2 - 1) and size // 2 % 4 == 2:
        off, on = torch.tensor([[[1, 1], [1, -1]], [[1, -1], [-1, -1]]], dtype=torch.float64)
        symmetric = _bordered(size // 2 - 1, 1.0)
        return (torch.kron(symmetric, off) + torch.kron(torch.eye(len(symmetric)).double(), on)) / math.sqrt(size)
    return None


def _bordered(q: int, corner: float) -> Tensor:
    """The quadratic characters of all differences modulo a prime q, with a border of ones (below it `corner`): a
    conference matrix [q + 1, q + 1]."""
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.float64)
    found = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    found[0, 1:], found[1:, 0] = 1, corner
    found[1:, 1:] = character[(torch.arange(q)[:, None] - torch.arange(q)) % q]
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))


@torch.no_grad()
def rotate(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Rotate a float32 model in place, by the rotation of a seed; returns it.

    Raises:
        ValueError: the model would compute something else: there are other things in its residual stream than
            embeddings, norms before linears, and linears. It is of no use any more.
    """
    width = model.get_input_embeddings().embedding_dim
    rotation, readers, before = random_rotation(width, seed), _readers(model, width), _logits(model)
    head = models.head(model)
    untie_head(model, {head.name} if head else set())
    for norm, reading in readers.items():
        gain = _level(norm, rotation)
        for reader in reading:
            reader.weight.copy_(rotation.turn(reader.weight.double() * gain))
    for linear in models.linears(model):
        if linear.parts().keys() <= {*WRITERS}:
            writer: nn.Linear = model.get_submodule(linear.name)
            writer.weight.copy_(rotation.turn(writer.weight.double().T).T)
            if writer.bias is not None:
                writer.bias.copy_(rotation.turn(writer.bias.double()))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == width:
            module.weight.copy_(rotation.turn(module.weight.double()))
    moved = float((_logits(model) - before).abs().max() / before.abs().max())
    if not moved <= TOLERANCE:
        raise ValueError(
            f"{type(model).__name__} does not allow its residual stream to be rotated (the logits would move by "
            f"{moved:.1e} of the largest)"
        )
    return model


@torch.no_grad()
def unturned(model: PreTrainedModel, seed: int) -> Callable[[Tensor], Tensor]:
    """What takes the last hidden states [..., width] of the model that `rotate` makes of this one back to its own.

    They differ by the rotation, and by the last norm's channel weights, which have gone into the head.

    Args:
        model: as it was before; unchanged.
    """
    width, head = model.get_input_embeddings().embedding_dim, model.get_output_embeddings()
    rotation = random_rotation(width, seed)
    last = next((norm for norm, readers in _readers(model, width).items() if head in readers), None)
    gain = torch.ones(width) if last is None else _gain(last)[0]
    return lambda states: rotation.back(states) * gain.to(states)


def _logits(model: PreTrainedModel) -> Tensor:
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens, use_cache=False).logits


def _readers(model: PreTrainedModel, width: int) -> dict[nn.Module, list[nn.Linear]]:
    """The norms of that width and the linears, head included, that read what each makes; found by running the model."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by address; the tensors are kept, so that none is used twice
    readers: dict[nn.Module, list[nn.Linear]] = {}

    def make(norm: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            made[out.data_ptr()] = norm, out

    def read(linear: nn.Linear, args: Any) -> None:
        norm, _ = made.get(args[0].data_ptr(), (None, None))
        if norm is not None:
            readers.setdefault(norm, []).append(linear)

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in model.modules() if is_norm(module) and len(module.weight) == width]
    handles = [norm.register_forward_hook(make) for norm in norms]
    handles += [linear.register_forward_pre_hook(read) for linear in linears]
    _logits(model)
    for handle in handles:
        handle.remove()
    return readers


def _level(norm: nn.Module, rotation: Rotation) -> Tensor:
    """Give a norm the same weight for each channel, and return what its readers' columns must be multiplied by.

    A bias is divided by that and rotated.
    """
    weight: Tensor = norm.weight  # type: ignore[assignment]
    bias: Tensor | None = getattr(norm, "bias", None)
    gain, level = _gain(norm)
    weight.fill_(level)
    if bias is not None:
        bias.copy_(rotation.turn(bias.double() / gain))
    return gain


def _gain(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """By what a norm multiplies each channel more than a level, float64 [width], and the weight that gives the level.

    The level is the root mean square over channels, so that its readers' weights stay as large as they were: their
    learning rate is for such.
    """
    offset = norm_offset(norm)
    weight: Tensor = norm.weight  # type: ignore[assignment]
    weights = weight.double() + offset
    level = (weights.square().mean().sqrt() - offset).to(FLOAT_DTYPE).double()  # as the export holds it
    return weights / (level + offset), level
