"""calibrate: quantize the teacher after training, by the chosen method and by round to nearest as the baseline."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.artifacts import contract, progress
from pipeline.calibration import fisher
from pipeline.calibration.coverage import coverage
from pipeline.calibration.driver import Calibrated, calibrate
from pipeline.calibration.fisher import Fisher
from pipeline.calibration.methods import PTQ_METHODS, Options
from pipeline.calibration.plan import plan
from pipeline.calibration.rotation import rotate
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.knobs import params
from pipeline.knobs.scheme import Activations, Weights
from pipeline.knobs.sections import Calibrate
from pipeline.models import float_type, forward, layout, saved
from stages import run

GPTQ = ("damping", "block", "act_order", "scales", "descent")  # knobs that are its own


def work() -> None:
    args = run.begin("calibrate", "teacher", "corpus", "out", "rtn")
    loaded = params.load()
    knobs, scheme = float_type.settled(loaded.calibrate), loaded.scheme
    contract.reading(args.teacher, contract.TEACHER)
    corpus = Corpus.load(args.corpus)
    tokens, lengths = corpus.train(knobs.sequences)
    sampled = corpus.sampled(knobs.sequences)
    valid = valid_mask(lengths, tokens.shape[1])
    gptq = {key: getattr(knobs, key) for key in GPTQ}
    chosen = Options(knobs.method, gptq, knobs.migration, knobs.batch, knobs.dtype)
    inputs = {
        "artifacts": [contract.fingerprint(folder) for folder in (args.teacher, args.corpus)],
        "knobs": dataclasses.asdict(knobs),
        "scheme": dataclasses.asdict(scheme),
        "seed": loaded.seed,
    }

    def run_one(
        model: PreTrainedModel, options: Options, scratch: Path, weighed: Mapping[str, Fisher] | None
    ) -> Calibrated:
        with progress.bar(f"calibrate {options.method}", len(layout.decoder_layers(model)[1]), " layer") as bar:
            return calibrate(model, tokens, valid, scheme, options, scratch, bar.update, weighed)

    model = saved.load_model(args.teacher)
    planned = plan(model, scheme)
    covered = coverage(model, planned)
    covered.check(knobs.coverage)
    print(f"calibrate: {covered}", flush=True)
    rotated = _rotate(model, loaded.seed, knobs.rotation)
    scratch = progress.scratch("calibrate", inputs)
    kept = len(list(scratch.glob("layer-*.safetensors")))
    if kept:
        print(f"calibrate: going on after {kept} layers", flush=True)
    weighed = _fisher(model, tokens, valid, sampled, planned, knobs, scratch)
    quantized = run_one(model, chosen, scratch, weighed)
    facts: dict[str, Any] = {
        "method": knobs.method,
        "sequences": knobs.sequences,
        "fisher": bool(weighed),
        **rotated,
        **covered.facts,
    }
    _save(quantized, args.out, facts)
    if knobs.method == "rtn" and rotated["rotation_seed"] is None:
        baseline = quantized
    else:
        del model, quantized, weighed
        nearest = dataclasses.replace(chosen, method="rtn", measure=False)
        (scratch / "rtn").mkdir(exist_ok=True)
        baseline = run_one(saved.load_model(args.teacher), nearest, scratch / "rtn", None)
    baseline.model.latent = {}  # training starts from the other one
    baseline.model.save(args.rtn, {"method": "rtn", "sequences": knobs.sequences, **covered.facts}, {})


def _save(quantized: Calibrated, out: str, facts: dict[str, Any]) -> None:
    """The quantized model with its errors, and with the pairs that did not fold, of which the user is told."""
    tables = {"errors": quantized.errors}
    if quantized.skipped:
        print(f"calibrate: {len(quantized.skipped)} pairs do not fold and were skipped, see skipped.csv", flush=True)
        tables["skipped"] = pd.DataFrame({"pair": quantized.skipped})
    quantized.model.save(out, facts, tables)


def _rotate(model: PreTrainedModel, seed: int, knob: str) -> dict[str, Any]:
    """Rotate the model by a seed, if that is asked for, or where it allows that; returns what was done, and why not.

    Raises:
        ValueError: it is asked for, and the model does not allow it.
    """
    if knob == "none":
        return {"rotation_seed": None, "rotation": "none", "rotation_reason": "calibrate.rotation is none"}
    try:
        rotate(model, seed)
    except ValueError as error:
        if knob == "hadamard":
            raise ValueError(f"calibrate.rotation is hadamard, but {error}; take auto or none") from None
        print(f"calibrate: goes on without rotation: {error}", flush=True)
        return {"rotation_seed": None, "rotation": "none", "rotation_reason": str(error)}
    return {"rotation_seed": seed, "rotation": "hadamard", "rotation_reason": f"calibrate.rotation is {knob}"}


def _fisher(
    model: PreTrainedModel,
    tokens: Tensor,
    valid: Tensor,
    sampled: Tensor,
    planned: dict[layout.Linear, tuple[Weights, Activations]],
    knobs: Calibrate,
    scratch: Path,
) -> Mapping[str, Fisher] | None:
    """The Fisher information by which the method weighs errors, if it does; kept in the scratch folder."""
    names = {linear.name for linear, (weights, _) in planned.items() if weights.bits and linear.layer >= 0}
    if not (names and knobs.fisher and PTQ_METHODS[knobs.method].uses_fisher):
        return None
    information = fisher.load(scratch)
    if information is not None:
        return information
    try:
        forward.head_weight(model)
    except ValueError as error:
        needed = "logits must be hidden states times the head"
        print(f"calibrate: goes on without the Fisher information, for which {needed}: {error}", flush=True)
        return None
    batch = max(1, knobs.batch // 2)  # a backward needs what a forward can drop
    with progress.bar("calibrate fisher", -(-len(tokens) // batch), " batch") as bar:
        information = fisher.fisher(model, tokens, valid, sampled, batch, knobs.dtype, names, bar.update)
    fisher.save(information, scratch)
    del information  # a linear's is read when its turn comes
    return fisher.load(scratch)


if __name__ == "__main__":
    run.main("calibrate", work)
