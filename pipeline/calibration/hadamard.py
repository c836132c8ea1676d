"""A random Hadamard matrix of any width, applied as a product of smaller ones, that leaves the vector of ones in place.

So a LayerNorm, which takes the mean off, commutes with it as an RMSNorm does.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


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
    right = next((matrix for matrix in map(paley, _divisors(width)) if matrix is not None), None)
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
    conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    conference[0, 1:], conference[1:, 0] = 1, corner
    conference[1:, 1:] = character[(torch.arange(q)[:, None] - torch.arange(q)) % q]
    return conference


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))
