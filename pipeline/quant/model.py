"""A quantized model as an artifact: what calibrate and distill make, and analyze, distill and export read.

It holds codes, scales and zero points of every quantized linear, how inputs and KV cache are quantized, all else that
the model's state has (parameters rounded to the dtype that the export stores, so that nothing changes on the way out,
and buffers as they are), and the latent weights that training starts from.
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

from pipeline.artifacts import contract
from pipeline.knobs.scheme import KVCache, Weights
from pipeline.quant import activations, weights
from pipeline.quant.activations import Quantizer, quantize_inputs
from pipeline.quant.grid import Step, stored_dtype
from pipeline.quant.kv_cache import quantize_cache

FLOAT_DTYPE = torch.float16  # of embeddings, norms and whatever else is not quantized, where its range is enough
FLOAT_ERROR = 2.0**-10  # what rounding to float16 may change a tensor by, as a share of it: twice what it does in range
CHUNK = 2**24  # values that are compared at once


@dataclass
class QuantizedModel:
    """A causal LM's quantized linears, by module name, and its other tensors, by their names in the model's state.

    schemes: of each quantized weight. codes: int8 or uint8 [out, in]. steps: scale and zero point, float32 [out, n],
    each scale representable in what `stored_dtype` says of them, float16 as a rule. inputs: the quantizer of each
    linear's input, where it has one. floats: parameters in float16, or bfloat16 or float32 where that does not hold
    them; persistent buffers in their own dtype. latent: float32 [out, in], empty for a finished student.
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
        with contract.writing(folder, contract.QUANTIZED) as draft:
            for part, tensors in self._tensors().items():
                if tensors:
                    save_file(
                        {k: v.contiguous() for k, v in sorted(tensors.items())}, draft.path / f"{part}.safetensors"
                    )
            contract.write_json(draft.path / "scheme.json", self.scheme_json())
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
            "scales": {name: step.scale.to(stored_dtype(step.scale)) for name, step in self.steps.items()},
            "zero_points": {name: self.steps[name].zero.to(torch.uint8) for name in asymmetric},
            "floats": self.floats,
            "latent": self.latent,
        }

    @classmethod
    def load(cls, folder: str | Path, latent: bool = False) -> tuple["QuantizedModel", dict[str, Any]]:
        """Read the artifact and its facts.

        Args:
            latent: with the latent weights, which only training needs: four times the memory of the codes.

        Raises:
            ValueError: it is not a quantized model, or was changed.
        """
        facts = contract.reading(folder, contract.QUANTIZED)
        stored = contract.read_json(Path(folder) / "scheme.json")

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
            latent=part("latent") if latent else {},
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
        tensors = state(model)
        ours = {name: values.shape for name, values in self.floats.items()}
        ours |= {f"{name}.weight": codes.shape for name, codes in self.codes.items()}
        theirs = {name: tensor.shape for name, tensor in tensors.items()}
        differ = sorted({name for name, _ in ours.items() ^ theirs.items()})
        if differ:
            raise ValueError(f"the quantized model does not fit the float one: {differ[:8]} differ")
        for name, values in self.floats.items():
            tensors[name].copy_(values)
        for name in self.codes:
            tensors[f"{name}.weight"].copy_(self.weight(name))
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


def state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state, by name: parameters, those that are shared once, and persistent buffers."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors


def float_tensors(model: nn.Module, quantized: set[str]) -> dict[str, Tensor]:
    """All of a model's state but the weights of quantized linears, as the export stores it.

    Parameters are rounded, see `stored_float`. Buffers stay as they are: a model keeps what must not be rounded there,
    as routers' corrections (e_score_correction_bias) and activations' constants (xIELU's beta and eps).

    Raises:
        ValueError: a parameter is not finite; all of them are named.
    """
    kept = {
        name: stored_float(values.detach()) if isinstance(values, nn.Parameter) else values.detach().clone()
        for name, values in state(model).items()
        if name.removesuffix(".weight") not in quantized
    }
    parameters = {name for name, _ in model.named_parameters()}
    bad = [name for name in kept if name in parameters and not bool(kept[name].isfinite().all())]
    if bad:
        raise ValueError(f"these tensors are not finite: {bad}; is the teacher sound?")
    return kept


def stored_float(values: Tensor) -> Tensor:
    """A parameter that is not quantized, in the dtype that the export stores.

    That is float16, unless it would round the tensor by more than FLOAT_ERROR of its norm, as where values exceed its
    range or lie, as all of them do, near its least number, 2^-24; then bfloat16, where that is exact, else float32.
    What comes out comes out the same again.
    """
    if not values.is_floating_point():
        return values
    half = values.to(FLOAT_DTYPE)
    error = norm = 0.0
    for exact, rounded in zip(values.reshape(-1).split(CHUNK), half.reshape(-1).split(CHUNK), strict=True):
        error += float((rounded.float() - exact).double().square().sum())
        norm += float(exact.double().square().sum())
    if error <= FLOAT_ERROR**2 * norm:
        return half
    wide = values.to(torch.bfloat16)
    return wide if torch.equal(wide.to(values.dtype), values) else values.clone()
