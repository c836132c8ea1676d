"""A stage that is run on what a user might give it, and what it answers."""

from pathlib import Path

from tests.integration.conftest import change_params, run_stage

DISTILL = {
    "teacher": "data/teacher",
    "targets": "data/targets",
    "calibration": "data/calibration",
    "signals": "data/signals",
}


EVALUATE = {
    "teacher": "data/teacher",
    "references": "data/references",
    "model": "data/int4/ptq/compressed-tensors",
    "items": "made/items",
}


CALIBRATE = {"teacher": "data/teacher", "corpus": "data/corpus", "rtn": "made/rtn"}


def calibrated(desk: Path, source: Path) -> str:
    """Take a model in a folder from there to own/ptq and own/rtn at W4A16; returns what calibrate said."""
    change_params(desk, {"teacher": {"path": str(source)}, "scheme": "W4A16"})
    change_params(desk, {"export": {"formats": ["compressed-tensors"]}})  # gguf holds some families alone
    evaluate = {"source": "hub", "tasks": ["piqa"], "instructions": 0}
    change_params(desk, {"evaluate": evaluate, "references": {"long": 0, "dialogues": 0}})  # longer than their contexts
    for stage, paths in (
        ("teacher", {"out": "own/teacher"}),
        ("synthesize", {"teacher": "own/teacher", "out": "own/corpus"}),
        ("calibrate", {"teacher": "own/teacher", "corpus": "own/corpus", "out": "own/ptq", "rtn": "own/rtn"}),
    ):
        done = run_stage(desk, stage, **paths)
        assert done.returncode == 0, done.stderr
    return done.stdout
