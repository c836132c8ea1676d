"""What a layer came to, kept in a scratch folder, so that a killed calibration goes on after the last whole one."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.knobs.scheme import Weights
from pipeline.quant.grid import Step
from pipeline.quant.model import QuantizedModel, state
from pipeline.rounding.methods import Rounded


@dataclass
class RoundedLayer:
    """A layer's quantized weights, by module name.

    floats: the rest of its state, as the export stores it, where a rescaling has changed it. rows: of the table of
    errors. skipped: rescaling pairs that do not fold.
    """

    rounded: dict[str, Rounded] = field(default_factory=dict)
    floats: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def put_into(self, model: PreTrainedModel, result: QuantizedModel) -> None:
        """Set the model's weights, and add codes, steps and latent weights to the result."""
        tensors = state(model)
        for name, values in self.floats.items():
            tensors[name].copy_(values)
        for name, rounded in self.rounded.items():
            model.get_submodule(name).weight.copy_(rounded.weight)
            result.codes[name], result.steps[name], result.latent[name] = rounded.codes, rounded.step, rounded.latent

    def save(self, scratch: Path | None, index: int) -> None:
        """Keep it, whole or not at all."""
        if scratch is None:
            return
        tensors = {f"float/{name}": values for name, values in self.floats.items()}
        for name, r in self.rounded.items():
            parts = {"codes": r.codes, "scale": r.step.scale, "zero": r.step.zero, "latent": r.latent}
            tensors |= {f"{part}/{name}": values.contiguous() for part, values in parts.items()}
        damping = {name: r.damping for name, r in self.rounded.items()}
        notes = json.dumps({"rows": self.rows, "skipped": self.skipped, "damping": damping})
        file = scratch / f"layer-{index}.safetensors"
        part = file.with_suffix(".part")
        save_file(tensors, part, metadata={"notes": notes})
        part.replace(file)

    @classmethod
    def load(cls, scratch: Path | None, index: int, weighted: dict[str, Weights]) -> "RoundedLayer | None":
        """What was kept of a layer; None where nothing whole was."""
        file = scratch / f"layer-{index}.safetensors" if scratch else None
        if file is None or not file.exists():
            return None
        try:
            with safe_open(file, "pt") as stored:
                notes = json.loads(stored.metadata()["notes"])
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  it is no dict
        except SafetensorError:
            return None
        rounded = {
            name: Rounded(
                tensors[f"codes/{name}"],
                Step(tensors[f"scale/{name}"], tensors[f"zero/{name}"]),
                tensors[f"latent/{name}"],
                weighted[name],
                damping,
            )
            for name, damping in notes["damping"].items()
        }
        floats = {key.removeprefix("float/"): t for key, t in tensors.items() if key.startswith("float/")}
        return cls(rounded, floats, notes["rows"], notes["skipped"])
