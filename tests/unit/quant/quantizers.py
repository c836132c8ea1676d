"""Quantizers of activations, and what they make of a tensor by torch's own op."""

import torch
from torch import Tensor

from pipeline.knobs.scheme import Activations
from pipeline.quant.activations import Quantizer
from pipeline.quant.grid import Step

EIGHT = Activations(8)


def step_of(scale: float, zero: float = 0) -> Step:
    return Step(torch.tensor(scale), torch.tensor(float(zero)))


def static(scale: float, scheme: Activations = EIGHT) -> Quantizer:
    return Quantizer(scheme, step_of(scale))


def fake_quantized(x: Tensor, scale: float) -> Tensor:
    """On a symmetric grid of 8 bits."""
    return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)
