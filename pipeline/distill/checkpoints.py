"""Checkpoints that a killed run goes on from: atomic, checked, the last two kept, no pickle.

A checkpoint is one safetensors file: masters, AdamW's moments, and in its header the step and the log so far. It is
written under another name and renamed when whole.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

KEPT = 2


def save(
    folder: Path,
    step: int,
    masters: dict[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    log: list[dict[str, Any]],
) -> None:
    """Write the state after `step` steps, and drop all but the last two checkpoints."""
    tensors = {}
    for name, master in masters.items():
        state = optimizer.state[master]
        tensors[f"master/{name}"] = master.detach()
        tensors[f"exp_avg/{name}"], tensors[f"exp_avg_sq/{name}"] = state["exp_avg"], state["exp_avg_sq"]
    file = folder / f"step-{step:08d}.safetensors"
    part = file.with_suffix(".part")
    save_file(tensors, part, metadata={"step": str(step), "log": json.dumps(log)})
    part.replace(file)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def restore(
    folder: Path, masters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest whole checkpoint into masters and optimizer; returns its step and log, or 0 and an empty log.

    A checkpoint that cannot be read is passed over for the one before it, with a warning on standard error.
    """
    for file in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(file, framework="pt") as stored:
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  not a dict
                header = stored.metadata()
            step, log = int(header["step"]), json.loads(header["log"])
            if {key.split("/", 1)[1] for key in tensors} != set(masters):
                raise ValueError("it holds other tensors")
        except Exception as error:  # safetensors has a class of its own for a truncated file
            print(f"distill: {file.name} cannot be used ({error}); trying the one before it", file=sys.stderr)
            continue
        with torch.no_grad():
            for name, master in masters.items():
                master.copy_(tensors[f"master/{name}"])
                optimizer.state[master] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"exp_avg/{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
                }
        return step, log
    return 0, []
