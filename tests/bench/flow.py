"""What running under Prefect and side by side costs and saves: `python -m tests.bench.flow [--steps 8] [--rounds 1]`.

Needs a finished `dvc repro`, whose cache a clone of HEAD shares. There it times

no-op: `dvc repro` with nothing to do, and `python -m pipeline.flow` with nothing to do: what Prefect adds, by stage;
sweep: four short trainings of the default model, one at a time with all cores, one at a time with one core, and two at
    once with the cores divided between them;
disk: what the project's cache and its data folder take, as if no file were shared between them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from pipeline.audit import locks
from pipeline.audit.trees import WorkingTree

ROOT = Path(__file__).parents[2]
FLOW = (sys.executable, "-m", "pipeline.flow")
POLICIES = ["none", "v", "ov", "qkvo"]
BATCH = {"distill.batch": 4, "distill.accumulate": 1}


def timed(command: list[str], where: Path, **environment: str) -> float:
    """Seconds that a command takes.

    Raises:
        SystemExit: it failed; with its output.
    """
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(where), "CI": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.monotonic()
    done = subprocess.run(command, cwd=where, env={**kept, **own, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.monotonic() - started


def clone(where: Path) -> None:
    """HEAD with the project's cache, its outputs checked out, and nothing to do."""
    git = ["git", "-c", "advice.detachedHead=false"]
    timed([*git, "clone", "--quiet", str(ROOT), str(where)], ROOT)
    for key, value in (("user.name", "bench"), ("user.email", "bench@localhost")):
        timed(["git", "config", key, value], where)
    timed(["dvc", "config", "--local", "cache.dir", str(ROOT / ".dvc/cache")], where)
    timed(["dvc", "checkout", "--quiet"], where)
    timed(["dvc", "repro"], where)


def no_op(where: Path, rounds: int) -> None:
    stages = len(locks.load(WorkingTree(where)).stages)
    for _ in range(rounds):
        plain, flow = timed(["dvc", "repro"], where), timed([*FLOW], where)
        print(f"no-op: dvc repro {plain:.1f} s, the flow {flow:.1f} s: {(flow - plain) / stages:+.2f} s a stage")


def sweep(where: Path, rounds: int, steps: int) -> None:
    ways: dict[str, tuple[list[str], dict[str, str]]] = {
        "one, all cores": ([], {}),
        "one, one core": ([], {"OMP_NUM_THREADS": "1"}),
        "two at once": (["--jobs", "2"], {}),
    }
    for turn in range(rounds):
        seconds = {}
        for i, (way, (options, environment)) in enumerate(ways.items()):
            file = where / f"sweeps/bench{turn}{i}.yaml"  # another seed, as what has run is not run again
            definition = {
                "grid": {"distill.freeze": POLICIES},
                "seeds": [100 + turn * len(ways) + i],
                "set": {"distill.steps": steps, **BATCH},
                "target": "distill",
                "metrics": ["end.kl"],
            }
            file.write_text(yaml.safe_dump(definition))
            seconds[way] = timed([*FLOW, "sweep", str(file.relative_to(where)), *options], where, **environment)
        line = ", ".join(f"{way} {taken:.0f} s" for way, taken in seconds.items())
        ratios = [seconds["two at once"] / seconds[way] for way in ("one, all cores", "one, one core")]
        print(f"sweep of {len(POLICIES)} points of {steps} steps: {line}; ratios {ratios[0]:.2f} and {ratios[1]:.2f}")


def disk() -> None:
    for folder in (".dvc/cache", "data"):
        blocks = subprocess.run(["du", "-s", "-B1M", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        print(f"disk: {folder} {blocks.stdout.split()[0]} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often each is timed (1)")
    parser.add_argument("--steps", type=int, default=8, help="of a training of the sweep (8)")
    parser.add_argument("--only", choices=["no-op", "sweep", "disk"], help="one of the three")
    args = parser.parse_args()
    if args.only in (None, "disk"):
        disk()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "project"
        if args.only != "disk":
            clone(where)
        if args.only in (None, "no-op"):
            no_op(where, args.rounds)
        if args.only in (None, "sweep"):
            sweep(where, args.rounds, args.steps)


if __name__ == "__main__":
    main()
