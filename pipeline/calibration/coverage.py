"""How much of a decoder is quantized, and what of it stays in float: whatever has two dimensions or more."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from pipeline.knobs.scheme import Activations, Weights
from pipeline.models import layout


@dataclass(frozen=True)
class Coverage:
    """Of the weights in the parameters of the decoder's layers with two dimensions or more.

    share: how much of them is quantized, less those that the scheme itself leaves in float. floats: what stays in
    float, by name (`*` for the layer's number), each with its share of them all. by_scheme: which of those the scheme
    leaves.
    """

    share: float
    floats: dict[str, float]
    by_scheme: frozenset[str] = frozenset()

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {"coverage": self.share, "in_float": self.floats}

    def __str__(self) -> str:
        """A sentence, and a line for all that stays in float."""
        rows = [
            f"\n  {name}: {100 * share:.2f} %{' (by the scheme)' if name in self.by_scheme else ''}"
            for name, share in sorted(self.floats.items(), key=lambda entry: -entry[1])
        ]
        stays = "; in float stay" if rows else ""
        return f"{100 * self.share:.1f} % of the weights in the decoder's matrices are quantized{stays}{''.join(rows)}"

    def check(self, least: float) -> None:
        """Raises ValueError where less than a share is quantized."""
        if self.share < least:
            raise ValueError(
                f"{self}\nThat is less than calibrate.coverage, {least}. What is no torch.nn.Linear, experts in one "
                "tensor, say, cannot be quantized yet; lower calibrate.coverage to go on without."
            )


def coverage(model: PreTrainedModel, planned: Mapping[layout.Linear, tuple[Weights, Activations]]) -> Coverage:
    """What of a model's decoder a plan quantizes."""
    prefix, layers = layout.decoder_layers(model)
    sizes = {name: p.numel() for name, p in layers.named_parameters(prefix=prefix) if p.ndim > 1}
    quantized = {f"{linear.name}.weight" for linear, (weights, _) in planned.items() if weights.bits}
    by_scheme = {f"{linear.name}.weight" for linear, (weights, _) in planned.items() if not weights.bits}
    total, asked = sum(sizes.values()), sum(size for name, size in sizes.items() if name not in by_scheme)
    floats: dict[str, float] = {}
    for name, size in sizes.items():
        if name not in quantized:
            kind = masked(name)
            floats[kind] = floats.get(kind, 0) + size / total
    share = sum(sizes.get(name, 0) for name in quantized) / asked if asked else 1.0
    return Coverage(share, floats, frozenset(masked(name) for name in by_scheme))


def masked(name: str) -> str:
    """A parameter's name without `.weight`, and `*` for every number in it."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name.removesuffix(".weight"))
