"""Weights that were rescaled (AWQ, SmoothQuant) beside those that they were made from.

Such a method folds scales into rows and columns: W' = diag(r) W diag(s) stands where W stood, and computes the same
function with the norms and linears around it. Before W' is quantized it may be clipped or corrected, so r and s can no
more be read off the artifact, but fitted: each is found from hundreds of weights, to about a percent at 4 bits.
"""

import torch
from torch import Tensor

from pipeline.calibration.rescale import RESCALINGS

ROUNDS = 20


def factors(weight: Tensor, reference: Tensor) -> Tensor:
    """diag(r) 1 diag(s) [out, in], by least squares of weight - diag(r) reference diag(s), rows and columns in turn.

    Divide a weight by it, or multiply a gradient by it, and it lies in the reference's coordinates.
    """
    energy = reference.square()
    products = weight * reference
    rows = torch.ones_like(weight[:, :1])
    columns = _positive(weight.square().sum(0, keepdim=True), energy.sum(0, keepdim=True)).sqrt()
    for _ in range(ROUNDS):
        rows = _positive((products * columns).sum(1, keepdim=True), (energy * columns.square()).sum(1, keepdim=True))
        columns = _positive((products * rows).sum(0, keepdim=True), (energy * rows.square()).sum(0, keepdim=True))
    return rows * columns


def rescales(method: str) -> bool:
    """Whether a PTQ method rescales."""
    return any(part in RESCALINGS for part in method.split("+"))


def _positive(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient, 1 where it is not above 0 (a row or column of zeros)."""
    quotient = numerator / denominator
    return torch.where(quotient > 0, quotient, torch.ones_like(quotient))
