"""A quantized model as an artifact: what calibrate and distill make, and analyze, distill and export read.

It holds codes and scales of every quantized linear, the static activation scales, the tensors that stay in float
(rounded to the dtype that the export stores, so that nothing changes on the way out), and the latent weights that
training starts from.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import artifacts
from pipeline.quant.activations import quantize_inputs
from pipeline.quant.grid import SCALE_DTYPE, dequantize

FLOAT_DTYPE = torch.float16  # of embeddings, norms and whatever else is not quantized


@dataclass
class QuantizedModel:
    """A causal LM's quantized linears, by module name, and its other tensors, by parameter name.

    codes: int8 [out, in]. scales: float32 [out, 1], each representable in float16. activation_scales: float32 scalars,
    empty where activations stay in float. floats: float16. latent: float32 [out, in], empty for a finished student.
    """

    weight_bits: int
    activation_bits: int
    codes: dict[str, Tensor]
    scales: dict[str, Tensor]
    activation_scales: dict[str, Tensor]
    floats: dict[str, Tensor]
    latent: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: str | Path, facts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
        """Write the artifact, with `tables` as CSV files beside the tensors."""
        with artifacts.writing(folder, artifacts.QUANTIZED) as draft:
            for part, tensors in self._tensors().items():
                if tensors:
                    save_file(
                        {k: v.contiguous() for k, v in sorted(tensors.items())},
                        draft.path / f"{part}.safetensors",
                    )
            for name, table in tables.items():
                table.to_csv(draft.path / f"{name}.csv", index=False)
            draft.facts = {**facts, "weight_bits": self.weight_bits, "activation_bits": self.activation_bits}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "codes": self.codes,
            "scales": {name: scale.to(SCALE_DTYPE) for name, scale in self.scales.items()},
            "activation_scales": self.activation_scales,
            "floats": self.floats,
            "latent": self.latent,
        }

    @classmethod
    def load(cls, folder: str | Path) -> tuple["QuantizedModel", dict[str, Any]]:
        """Read the artifact and its facts.

        Raises:
            ValueError: it is not a quantized model, or was changed.
        """
        facts = artifacts.reading(folder, artifacts.QUANTIZED)

        def part(name: str) -> dict[str, Tensor]:
            file = Path(folder) / f"{name}.safetensors"
            return load_file(file) if file.exists() else {}

        scales = {name: scale.float() for name, scale in part("scales").items()}
        rest = part("activation_scales"), part("floats"), part("latent")
        return cls(facts["weight_bits"], facts["activation_bits"], part("codes"), scales, *rest), facts

    def weight(self, name: str) -> Tensor:
        """The weight that a linear's codes stand for: float32 [out, in]."""
        return dequantize(self.codes[name], self.scales[name])

    @torch.no_grad()
    def put_into(self, model: PreTrainedModel) -> Callable[[], None]:
        """Give a float model this one's numbers and quantize its linears' inputs; returns what undoes the latter.

        Raises:
            ValueError: the two do not have the same tensors.
        """
        parameters = dict(model.named_parameters())
        ours = {f"{name}.weight" for name in self.codes} | set(self.floats)
        if ours != set(parameters):
            raise ValueError(
                f"the quantized model does not fit the float one: {sorted(ours ^ set(parameters))[:8]} differ"
            )
        for name, values in self.floats.items():
            parameters[name].copy_(values)
        for name in self.codes:
            parameters[f"{name}.weight"].copy_(self.weight(name))
        handles = quantize_inputs(model, self.activation_scales, self.activation_bits)

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return undo


def float_tensors(model: nn.Module, quantized: set[str]) -> dict[str, Tensor]:
    """The parameters that are not the weight of a quantized linear, rounded to the dtype that the export stores.

    Raises:
        ValueError: one of them does not fit that dtype's range.
    """
    kept = {
        name: p.detach().to(FLOAT_DTYPE)
        for name, p in model.named_parameters()
        if name.removesuffix(".weight") not in quantized
    }
    bad = [name for name, values in kept.items() if not bool(values.isfinite().all())]
    if bad:
        raise ValueError(f"these tensors leave the range of {FLOAT_DTYPE}, in which the export stores them: {bad}")
    return kept
