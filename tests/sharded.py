"""Training of tiny models, alone or as one of several processes (`torchrun … -m tests.sharded folder`)."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts.contract import write_json
from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import Options
from pipeline.distill import loop
from pipeline.distill.freeze import frozen_rows
from pipeline.distill.parallel import Processes, join
from pipeline.distill.prepare import prepare
from pipeline.distill.schedule import Schedule
from pipeline.distill.student import Learns
from pipeline.distill.targets import record
from pipeline.knobs.scheme import Activations, Override, Scheme, Weights
from pipeline.losses.chunked import LossWeights
from pipeline.models import forward, layout
from tests.families import family

W4 = Scheme(Weights(4), Activations(16))
FINE = Scheme(Weights(3, symmetric=False, group=8))
PARTLY = Scheme(Weights(4), overrides=(Override("down", weights=Weights(0)),))
CASES: dict[str, tuple[str, Scheme, str, Learns]] = {
    "biases": ("qwen2", W4, "ov", Learns("learned", embeddings=True)),
    "fused": ("phi3", FINE, "qk", Learns("static")),  # all rows of the first process are frozen
    "by head": ("gpt-neox", FINE, "v", Learns("minmax")),
    "partly float": ("llama", PARTLY, "none", Learns("static")),
    "no attention": ("mamba", W4, "none", Learns("learned")),
}
STEPS = 4


def train(case: str, folder: Path, processes: Processes, stop: int = 0) -> None:
    """Train a case, going on from its checkpoints in `folder`; `stop`: leave after so many steps, as a kill would.

    The first process writes what came out into the folder: codes, scales and floats, and the log.
    """
    name, scheme, policy, learns = CASES[case]
    tokens = torch.randint(3, 259, (8, 20), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 7, 20, 13, 2, 20, 20, 5])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    options = Options("rtn", {}, batch=8, measure=False)
    start = calibrate(family(name), tokens, valid, scheme, options, None, lambda: None).model
    start.latent = {key: latent.clone() for key, latent in start.latent.items()}
    model = family(name)
    frozen = frozen_rows(policy, [linear for linear in layout.linears(model) if linear.name in start.codes])
    head = forward.head_weight(family(name)).detach()
    student = prepare(model, start, frozen, learns, torch.float32, processes)
    data = record(family(name), tokens, lengths, 8, "float32", lambda done: None)
    plan = Schedule(STEPS, 4, 2 if processes.count == 1 else 1, 1e-3, 1e-4, 0.0, 1.0, 0.0, 1.0, 2, "float32", 0)
    folder.mkdir(parents=True, exist_ok=True)

    def report(row: dict[str, Any]) -> None:
        if row["step"] == stop:
            raise KeyboardInterrupt

    try:
        log = loop.train(student, head, data, plan, LossWeights(0.3, 0.7, 1.0, 16), folder, lambda done: report)
    except KeyboardInterrupt:
        return
    finished = student.finished()
    if processes.first:
        out: dict[str, Tensor] = {f"codes/{key}": codes for key, codes in finished.codes.items()}
        out |= {f"scales/{key}": step.scale.contiguous() for key, step in finished.steps.items()}
        out |= {f"floats/{key}": values for key, values in finished.floats.items()}
        save_file(out, folder / "finished.safetensors")
        write_json(folder / "log.json", log)


def main() -> None:
    """Train every case in the folder that the command line names: whole, and stopped once."""
    torch.set_num_threads(1)
    processes = join(sharded=True)
    for case in CASES:
        train(case, Path(sys.argv[1]) / case, processes)
        train(case, Path(sys.argv[1]) / f"{case} stopped", processes, stop=3)
        train(case, Path(sys.argv[1]) / f"{case} stopped", processes)
    processes.leave()


if __name__ == "__main__":
    main()
