"""How long an audit takes: `python -m tests.bench.audit [--versions 50]`.

Makes a clone of this project with so many versions, each with scores, answers and documents of its own for all four
variants (6 tasks x 64 items, 16 windows, 32 sequences), and times `python -m pipeline.audit` over them all, twice.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from pipeline.artifacts.dvc_hashes import folder_md5
from pipeline.evaluation import items

VARIANTS = ("teacher", "rtn", "ptq", "student")
TASKS = ("arc_challenge", "arc_easy", "hellaswag", "openbookqa", "piqa", "winogrande")
MEASURES = {"log_perplexity": 16, "kl": 32, "top1": 32}


def made(random: np.random.Generator) -> items.Items:
    """Answers and documents as a variant's are, of random numbers."""
    answers = [
        {
            "task": task,
            "item": i,
            "hash": f"{task}{i}",
            "prediction": 0,
            "correct": bool(random.random() < 0.6),
            "log_likelihoods": list(random.normal(-30, 5, 4)),
        }
        for task in TASKS
        for i in range(64)
    ]
    documents = [
        {"measure": measure, "document": i, "hash": f"{measure}{i}", "tokens": 255, "value": random.gamma(4, 0.05)}
        for measure, count in MEASURES.items()
        for i in range(count)
    ]
    return items.Items(items.answers(answers), items.documents(documents))


def into_cache(folder: Path, cache: Path) -> str:
    """Put a folder's files into a DVC cache; gives the folder's hash."""
    hashes = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        hashes[file.name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        _store(cache, hashes[file.name], content)
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(hashes.items())]
    _store(cache, folder_md5(hashes.items()), json.dumps(listing).encode())
    return folder_md5(hashes.items())


def _store(cache: Path, md5: str, content: bytes) -> None:
    (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
    (cache / md5[:2] / md5[2:]).write_bytes(content)


def history(project: Path, versions: int) -> None:
    """Commit so many versions, each with items of its own."""
    random, cache = np.random.default_rng(0), project / ".dvc/cache/files/md5"
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    for number in range(versions):
        for variant in VARIANTS:
            folder = project / "runs/made" / f"{number}-{variant}"
            made(random).save(folder)
            outs = lock["stages"][f"evaluate@{variant}"]["outs"]
            outs[:] = [out for out in outs if not out["md5"].endswith(".dir")]
            outs.append({"path": f"data/items/{variant}", "hash": "md5", "md5": into_cache(folder, cache)})
        (project / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
        for command in (["add", "dvc.lock"], ["commit", "-q", "-m", f"version {number}"]):
            subprocess.run(["git", *command], cwd=project, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.audit", description=__doc__)
    parser.add_argument("--versions", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        project = Path(where) / "project"
        subprocess.run(["git", "clone", "-q", str(Path(__file__).parents[2]), str(project)], check=True)
        for key in ("user.name", "user.email"):
            subprocess.run(["git", "config", key, "bench"], cwd=project, check=True)
        history(project, args.versions)
        for _ in range(2):
            started = time.monotonic()
            command = [sys.executable, "-m", "pipeline.audit", "--commits", str(args.versions)]
            subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            table = (project / "runs/audit/audit.csv").read_text()
            comparisons = table.count(",comparison,")
            took = time.monotonic() - started
            print(f"{args.versions + 1} versions, {comparisons} comparisons: {took:.1f} s", flush=True)


if __name__ == "__main__":
    main()
