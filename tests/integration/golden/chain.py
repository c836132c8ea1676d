"""The stages of dvc.yaml one after the other in this process, with the commands that stand there."""

import shlex
from pathlib import Path

import torch
import yaml

from tests.integration.conftest import KNOBS, change_params, checkout, enter_stage

IN_COMMANDS = {"targets.text": "data/text", "evaluate.format": "compressed-tensors"}
FLOAT32 = {
    **{stage: {"dtype": "float32"} for stage in ("synthesize", "calibrate", "targets")},
    "distill": {"steps": 3, "lr": 1e-3, "dtype": "float32"},
}


def make(where: Path, teacher: Path) -> Path:
    """Run all stages but the report in a new checkout, in float32 and on one thread; returns its data folder."""
    checkout(where, teacher)
    change_params(where, {section: {**KNOBS.get(section, {}), **knobs} for section, knobs in FLOAT32.items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for command in commands(yaml.safe_load((where / "dvc.yaml").read_text())):
            _, _, module, *arguments = shlex.split(command)
            enter_stage(where, module.partition(".")[2], arguments)
    finally:
        torch.set_num_threads(threads)
    return where / "data"


def commands(flow: dict) -> list[str]:
    """The commands of dvc.yaml, in its order, those of a foreach one by one."""
    stage_commands = []
    for name, stage in flow["stages"].items():
        for key, item in stage.get("foreach", {"": ""}).items():
            if name != "report":
                command = stage.get("do", stage)["cmd"].replace("${item}", item).replace("${key}", key)
                for knob, value in IN_COMMANDS.items():
                    command = command.replace(f"${{{knob}}}", value)
                stage_commands.append(command)
    return stage_commands
