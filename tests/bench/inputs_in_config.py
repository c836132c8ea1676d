"""Whether compressed-tensors' own places for inputs and KV cache make transformers compute what the scheme means.

A tiny random model is exported, and its inputs (config_groups' input_activations, a scale a linear beside the weights)
or its KV cache (kv_cache_scheme) are written into the file. What transformers then computes is held against the export
as `load_exported` has it, whose inputs and cache are on the scheme's grids.

    python -m tests.bench.inputs_in_config
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.export.compressed_tensors import WEIGHTS
from pipeline.export.formats import export, load_exported
from pipeline.knobs.scheme import Activations, KVCache, Scheme, Weights
from pipeline.models import saved
from pipeline.quant.model import QuantizedModel
from tests import tiny

TOKENS = torch.randint(3, 259, (6, 20), generator=torch.Generator().manual_seed(1))
SCHEMES = {
    "INT8 inputs, static": Scheme(Weights(4), Activations(8)),
    "INT8 inputs, static, asymmetric": Scheme(Weights(4), Activations(8, symmetric=False)),
    "INT16 inputs, static": Scheme(Weights(4), Activations(16)),
    "INT8 inputs, dynamic": Scheme(Weights(4), Activations(8, dynamic=True)),
    "INT8 KV cache": Scheme(Weights(4), Activations(0), KVCache(8)),
}


def main() -> None:
    """A line a scheme."""
    for name, scheme in SCHEMES.items():
        with tempfile.TemporaryDirectory() as scratch:
            in_float, in_file = differences(scheme, Path(scratch))
        print(f"{name:32} without {in_float:.1e}, in the file {in_file:.1e} of the largest logit")


def differences(scheme: Scheme, scratch: Path) -> tuple[float, float]:
    """Of transformers' logits from the scheme's, without inputs and cache in the file and with them, as shares of the
    largest logit."""
    valid = torch.ones_like(TOKENS, dtype=torch.bool)
    options = Options("rtn", {}, batch=6, measure=False)
    quantized = calibrate(tiny.llama(), TOKENS, valid, scheme, options, None, lambda: None).model
    out = scratch / "out"
    out.mkdir()
    export(quantized, tiny.save_whole(scratch / "teacher"), "compressed-tensors", out)
    meant = load_exported(out, "float32")(input_ids=TOKENS).logits
    without = as_loaded(out)
    write_signals(out, quantized, scheme)
    largest = float(meant.abs().max())
    return tuple(float((logits - meant).abs().max()) / largest for logits in (without, as_loaded(out)))  # type: ignore[return-value]


def as_loaded(folder: Path) -> Tensor:
    """What transformers computes from a folder."""
    return saved.load_model(folder)(input_ids=TOKENS).logits


def write_signals(folder: Path, quantized: QuantizedModel, scheme: Scheme) -> None:
    """Write inputs and KV cache into config and weights, as compressed-tensors has places for them."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    if scheme.activations.bits:
        for group in config["quantization_config"]["config_groups"].values():
            group["input_activations"] = arguments(
                scheme.activations.bits, scheme.activations.symmetric, scheme.activations.dynamic
            )
        for name, quantizer in quantized.inputs.items():
            if quantizer.step is not None:
                assert quantizer.outer is None, f"{name} has two grids, for which there is no place"
                tensors[f"{name}.input_scale"] = quantizer.step.scale.reshape(1)
                if not scheme.activations.symmetric:
                    zero = quantizer.step.zero.reshape(1) - 2 ** (scheme.activations.bits - 1)  # its codes are signed
                    tensors[f"{name}.input_zero_point"] = zero.to(torch.int8)
    if scheme.kv_cache.bits:
        config["quantization_config"]["kv_cache_scheme"] = arguments(scheme.kv_cache.bits, True, True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    file.write_text(json.dumps(config), encoding="utf-8")


def arguments(bits: int, symmetric: bool, dynamic: bool) -> dict[str, Any]:
    """A grid, as compressed-tensors says it."""
    strategy = "token" if dynamic else "tensor"
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": dynamic}


if __name__ == "__main__":
    main()
