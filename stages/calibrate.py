"""calibrate: quantize the teacher after training, by the chosen method and by round to nearest as the baseline."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from pipeline import artifacts, models, params, progress
from pipeline.calibration.driver import Calibrated, Options, calibrate
from pipeline.calibration.rotation import rotate
from pipeline.corpus import Corpus, valid_mask
from stages import run


def work() -> None:
    args = run.begin("calibrate", "teacher", "corpus", "out", "rtn")
    loaded = params.load()
    knobs, scheme = loaded.calibrate, loaded.scheme
    artifacts.reading(args.teacher, artifacts.TEACHER)
    tokens, lengths = Corpus.load(args.corpus).train(knobs.sequences)
    valid = valid_mask(lengths, tokens.shape[1])
    gptq = {key: getattr(knobs, key) for key in ("damping", "block", "act_order", "scales", "descent")}
    chosen = Options(knobs.method, gptq, knobs.migration, knobs.batch, knobs.dtype)
    inputs = {
        "artifacts": [artifacts.fingerprint(folder) for folder in (args.teacher, args.corpus)],
        "knobs": dataclasses.asdict(knobs),
        "scheme": dataclasses.asdict(scheme),
        "seed": loaded.seed,
    }

    def run_one(model: PreTrainedModel, options: Options, scratch: Path | None) -> Calibrated:
        with progress.bar(f"calibrate {options.method}", len(models.decoder_layers(model)[1]), " layer") as bar:
            return calibrate(model, tokens, valid, scheme, options, scratch, bar.update)

    baseline = run_one(models.load_model(args.teacher), dataclasses.replace(chosen, method="rtn", measure=False), None)
    baseline.model.latent = {}  # training starts from the other one
    baseline.model.save(args.rtn, {"method": "rtn", "sequences": knobs.sequences}, {})
    scratch = progress.scratch("calibrate", inputs)
    kept = len(list(scratch.glob("*.safetensors")))
    if kept:
        print(f"calibrate: going on after {kept} layers", flush=True)
    model, seed = _rotated(args.teacher, loaded.seed if knobs.rotation == "hadamard" else None)
    quantized = run_one(model, chosen, scratch)
    facts: dict[str, Any] = {"method": knobs.method, "sequences": knobs.sequences, "rotation_seed": seed}
    tables = {"errors": quantized.errors}
    if quantized.skipped:
        print(f"calibrate: {len(quantized.skipped)} pairs do not fold and were skipped, see skipped.csv", flush=True)
        tables["skipped"] = pd.DataFrame({"pair": quantized.skipped})
    quantized.model.save(args.out, facts, tables)
    progress.clear("calibrate")


def _rotated(teacher: str, seed: int | None) -> tuple[PreTrainedModel, int | None]:
    """The teacher, rotated by a seed (None: not rotated) where it allows that, and the seed by which it was."""
    model = models.load_model(teacher)
    if seed is None:
        return model, None
    try:
        return rotate(model, seed), seed
    except ValueError as error:
        print(f"calibrate: goes on without rotation: {error}", flush=True)
        return models.load_model(teacher), None


if __name__ == "__main__":
    run.main("calibrate", work)
