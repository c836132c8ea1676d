"""A quantized model as an artifact: what calibrate and distill make, and analyze, distill and export read.

It holds codes, scales and zero points of every quantized linear, how inputs and KV cache are quantized, the tensors
that stay in float (rounded to the dtype that the export stores, so that nothing changes on the way out), and the latent
weights that training starts from.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline import artifacts
from pipeline.quant import activations, weights
from pipeline.quant.activations import Quantizer, quantize_inputs
from pipeline.quant.grid import SCALE_DTYPE, Step
from pipeline.quant.kv_cache import quantize_cache
from pipeline.scheme import KVCache, Weights

FLOAT_DTYPE = torch.float16  # of embeddings, norms and whatever else is not quantized


@dataclass
class QuantizedModel:
    """A causal LM's quantized linears, by module name, and its other tensors, by parameter name.

    schemes: of each quantized weight. codes: int8 or uint8 [out, in]. steps: scale and zero point, float32 [out, n],
    each scale representable in float16. inputs: the quantizer of each linear's input, where it has one.
    floats: float16. latent: float32 [out, in], empty for a finished student.
    """

    schemes: dict[str, Weights] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    inputs: dict[str, Quantizer] = field(default_factory=dict)
    kv_cache: KVCache = field(default_factory=lambda: KVCache(0))
    floats: dict[str, Tensor] = field(default_factory=dict)
    latent: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: str | Path, facts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
        """Write the artifact, with `tables` as CSV files beside the tensors."""
        with artifacts.writing(folder, artifacts.QUANTIZED) as draft:
            for part, tensors in self._tensors().items():
                if tensors:
                    save_file(
                        {k: v.contiguous() for k, v in sorted(tensors.items())}, draft.path / f"{part}.safetensors"
                    )
            artifacts.write_json(draft.path / "scheme.json", self.scheme_json())
            for name, table in tables.items():
                table.to_csv(draft.path / f"{name}.csv", index=False)
            draft.facts = facts

    def scheme_json(self) -> dict[str, Any]:
        """Everything about the grids that is no tensor."""
        return {
            "weights": {name: asdict(scheme) for name, scheme in self.schemes.items()},
            "inputs": activations.to_json(self.inputs),
            "kv_cache": asdict(self.kv_cache),
        }

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        asymmetric = [name for name, scheme in self.schemes.items() if not scheme.symmetric]
        return {
            "codes": self.codes,
            "scales": {name: step.scale.to(SCALE_DTYPE) for name, step in self.steps.items()},
            "zero_points": {name: self.steps[name].zero.to(torch.uint8) for name in asymmetric},
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
        stored = artifacts.read_json(Path(folder) / "scheme.json")

        def part(name: str) -> dict[str, Tensor]:
            file = Path(folder) / f"{name}.safetensors"
            return load_file(file) if file.exists() else {}

        scales, zeros = part("scales"), part("zero_points")
        steps = {
            n: Step(s.float(), zeros[n].float() if n in zeros else torch.zeros(s.shape)) for n, s in scales.items()
        }
        loaded = cls(
            schemes={name: Weights(**fields) for name, fields in stored["weights"].items()},
            codes=part("codes"),
            steps=steps,
            inputs=activations.from_json(stored["inputs"]),
            kv_cache=KVCache(**stored["kv_cache"]),
            floats=part("floats"),
            latent=part("latent"),
        )
        return loaded, facts

    def weight(self, name: str) -> Tensor:
        """The weight that a linear's codes stand for: float32 [out, in]."""
        return weights.dequantize(self.codes[name], self.steps[name], self.schemes[name])

    def untie(self, model: PreTrainedModel) -> None:
        """Give a model's head a weight of its own, where this one's has one."""
        untie_head(model, {*self.codes, *(name.removesuffix(".weight") for name in self.floats)})

    @torch.no_grad()
    def put_into(self, model: PreTrainedModel) -> Callable[[], None]:
        """Give a float model this one's numbers, quantize its linears' inputs and its KV cache; returns what undoes the
        latter two.

        Raises:
            ValueError: the two do not have the same tensors.
        """
        self.untie(model)
        parameters = dict(model.named_parameters())
        ours = {name: values.shape for name, values in self.floats.items()}
        ours |= {f"{name}.weight": codes.shape for name, codes in self.codes.items()}
        theirs = {name: parameter.shape for name, parameter in parameters.items()}
        differ = sorted({name for name, _ in ours.items() ^ theirs.items()})
        if differ:
            raise ValueError(f"the quantized model does not fit the float one: {differ[:8]} differ")
        for name, values in self.floats.items():
            parameters[name].copy_(values)
        for name in self.codes:
            parameters[f"{name}.weight"].copy_(self.weight(name))
        return quantize_signals(model, self.inputs, self.kv_cache)


def quantize_signals(model: PreTrainedModel, inputs: dict[str, Quantizer], kv_cache: KVCache) -> Callable[[], None]:
    """Quantize a model's linears' inputs and its KV cache from now on; returns what undoes it."""
    handles = quantize_inputs(model, inputs)
    restore = quantize_cache(model, kv_cache) if kv_cache.bits else None

    def undo() -> None:
        for handle in handles:
            handle.remove()
        if restore is not None:
            restore()

    return undo


def untie_head(model: PreTrainedModel, own: set[str]) -> None:
    """Give the head a weight of its own, where it is among these modules and shared one with the embeddings."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, nn.Linear) and head.weight is embedding.weight:
        name = next(name for name, module in model.named_modules() if module is head)
        if name in own:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False


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
