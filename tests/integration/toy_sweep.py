"""A project of stages that take no time, and sweeps over it."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.integration.conftest import ROOT, environment, run

SWEEP = [sys.executable, "-m", "pipeline.flow", "sweep", "sweeps/tiny.yaml"]


DEFINITION: dict[str, Any] = {
    "name": "tiny",
    "grid": {"distill.freeze": ["none", "qkv", "mlp"]},
    "seeds": [0, 1],
    "baseline": {"distill.freeze": "none"},
    "metrics": ["perplexity", "kl"],
}


STAGES = """
stages:
  synthesize:
    cmd: echo synthesize >> ${log} && mkdir -p data && echo corpus > data/corpus
    params: [seed]
    deps: [code.py]
    outs: [data/corpus]
  calibrate:
    cmd: echo calibrate >> ${log} && cp data/corpus data/calibration
    params: [calibrate]
    deps: [data/corpus]
    outs: [data/calibration]
  distill:
    cmd: python code.py ${log}
    params: [distill]
    deps: [data/calibration, code.py]
    outs: [data/student]
  evaluate:
    foreach: {student: data/student}
    do:
      cmd: mkdir -p data/scores && cp ${item}/scores.json data/scores/${key}.json
      deps: ["${item}"]
      outs: ["data/scores/${key}.json"]
"""


# mlp fails, and qkv falls asleep over a checkpoint, from which it goes on when it runs again.
CODE = """
import json, os, pathlib, sys, time, yaml
log = pathlib.Path(sys.argv[1])
knobs = yaml.safe_load(open("params.yaml"))["distill"]
freeze, seed = knobs["freeze"], knobs["seed"]
half = pathlib.Path("runs/scratch/distill/half")
with log.open("a") as file:
    print("resumed" if half.exists() else "distill", freeze, seed, sep="-", file=file)
log.with_name("threads").write_text(os.environ.get("OMP_NUM_THREADS", "as it comes"))
if freeze == "mlp":
    sys.exit("the disk is full")
if freeze == "qkv" and not half.exists():
    half.parent.mkdir(parents=True)
    half.touch()
    log.with_name(f"asleep-{seed}").touch()
    time.sleep(300)
out = pathlib.Path("data/student")
out.mkdir(parents=True)
kl = {"none": 0.2, "qkv": 0.25}.get(freeze, 0.3) + seed / 8
scores = {"kl": kl, "kl.stderr": 0.01, "perplexity": 10 + kl, "perplexity.stderr": 0.5}
(out / "scores.json").write_text(json.dumps(scores))
rows = "".join(f"{step},{kl + 1 / step},{3 - kl},1,0.1\\n" for step in range(1, 6))
(out / "log.csv").write_text("step,kl,gradient_norm,gradient_norm.o,lr\\n" + rows)
"""


def define(where: Path, definition: dict[str, Any]) -> None:
    (where / "sweeps").mkdir(exist_ok=True)
    (where / "sweeps/tiny.yaml").write_text(yaml.safe_dump(definition))


def own_environment(where: Path) -> dict[str, str]:
    """As in CI, with the flow from this tree, Prefect's settings its own, and threads as they come."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("PREFECT_", "OMP_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}


def sweep(where: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*SWEEP, *options],
        cwd=where,
        env=own_environment(where),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def ran(where: Path) -> list[str]:
    return (where.parent / "log/ran").read_text().split()


def rows(where: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The points' rows by policy and seed."""
    with (where / "sweeps/tiny/points.csv").open() as file:
        return {(row["distill.freeze"], row["distill.seed"]): row for row in csv.DictReader(file)}


def finished(where: Path) -> set[tuple[str, str]]:
    return {point for point, row in rows(where).items() if row["kl"]}


def untouched(where: Path) -> bool:
    """Whether the user's tree is on its branch, with nothing stashed, and no change but the sweep's results."""
    branch = run(["git", "symbolic-ref", "HEAD"], where).stdout
    changes = run(["git", "status", "--porcelain"], where).stdout.split("\n")
    stashed = run(["git", "for-each-ref", "refs/stash", "refs/exps/stash", "refs/exps/exec"], where).stdout
    locks = [*where.glob(".git/**/*.lock"), *where.glob(".dvc/tmp/rwlock")]
    return bool(branch) and {*changes} <= {"", "?? sweeps/tiny/"} and not stashed and not locks
