"""How fast a step of distillation is, and what memory it takes: ours against the floor and the usual ways.

    python -m venv peer && peer/bin/pip install torch==2.13.0 transformers==5.23.0 torchao==0.18.0
    python -m tests.bench.distill --peer peer/bin/python
    python -m tests.bench.distill --only floor,ours,plain --shape 1b     # a random model of that shape, as on a GPU

floor: our loop on a student that is not quantized. ours: W4 per channel. plain: the teacher in each step, whole logits,
straight-through rounding in each forward. torchao: the same with its QAT prepare. All of the same model, batch, dtype,
trained parameters and optimizer. Each runs in a process of its own, round after round, so that a machine's moods meet
all; the first two steps of a process are left out. The teacher's pass that ours records beforehand is timed, too.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.models import float_type
from tests.bench.contenders import CONTENDERS, SHAPES, device


def one(args: argparse.Namespace) -> None:
    """Run a contender here, and print what came out as JSON."""
    measurements = CONTENDERS[args.run](args)
    if device().type == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        peak = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({**measurements, "peak_gib": peak}))


def matrix_rate(dtype: str) -> float:
    """Products of square matrices of a float type: operations a second."""
    size = 2048 if device().type == "cpu" else 8192
    a = torch.randn(size, size, device=device(), dtype=getattr(torch, dtype))
    for count in (3, 10):
        begun = time.monotonic()
        for _ in range(count):
            b = a @ a
        float(b[0, 0])
    return 2 * size**3 * 10 / (time.monotonic() - begun)


def operations(args: argparse.Namespace) -> float:
    """Multiplications and additions of a step of ours: three passes through the linears, two heads and one back."""
    with torch.device("meta"):
        if args.shape:
            hidden, inner, layers, heads, key_heads, vocabulary = SHAPES[args.shape]
            rows = hidden * 2 + 2 * hidden * key_heads // heads + 3 * inner
            linears, head = layers * hidden * rows, vocabulary * hidden
        else:
            model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(args.teacher))
            head = model.get_output_embeddings().weight.numel()
            linears = sum(p.numel() for p in model.base_model.layers.parameters() if p.ndim == 2)
    return 2 * args.batch * args.length * 3 * (linears + head)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--shape", choices=SHAPES, help="a random model instead of the teacher")
    parser.add_argument("--peer", help="python of an environment with torchao")
    parser.add_argument("--only", default="floor,ours,plain,torchao")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of a contender in a round, after warming up")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="ours and floor: forwards a step; others take one",
    )
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--dtype", default="auto", help="of the forwards; auto: what the pipeline takes here")
    parser.add_argument("--activations", action="store_true", help="ours, with dynamic INT8 inputs besides")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace, names: list[str]) -> dict[str, list[dict]]:
    """What each contender printed, a round each."""
    measurements: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            python = args.peer if name == "torchao" else sys.executable
            command = [python, "-m", "tests.bench.distill", *sys.argv[1:], "--dtype", args.dtype, "--run", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            measurements[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, [f"{s:.2f}" for s in measurements[name][-1]["seconds"]], file=sys.stderr, flush=True)
    return measurements


def tell(args: argparse.Namespace, measurements: dict[str, list[dict]], rate: float) -> None:
    """Print each contender's speed and memory, and ours against each other's; `rate` as `matrix_rate` measures it."""
    seconds = {
        name: statistics.median(s for round_ in rounds for s in round_["seconds"])
        for name, rounds in measurements.items()
    }
    print(f"{args.batch} x {args.length} tokens a step; {args.dtype} products: {rate / 1e9:,.0f} GFLOP/s")
    for name, rounds in measurements.items():
        peak = max(round_["peak_gib"] for round_ in rounds)
        line = f"{name:8} {seconds[name]:7.3f} s a step, {args.batch * args.length / seconds[name]:8,.0f} tok/s, "
        line += f"peak {peak:5.2f} GiB, last KL {rounds[-1]['kl']:.3f}"
        if name in ("floor", "ours"):
            share = operations(args) / rate / seconds[name]
            line += f"; the teacher's one pass {statistics.median(r['teacher'] for r in rounds):.3f} s a step"
            line += f"; {100 * share:.0f} % of the matrix rate"
        print(line)
    for other in [name for name in measurements if name != "ours" and "ours" in measurements]:
        ratio = seconds["ours"] / seconds[other]
        memory = max(r["peak_gib"] for r in measurements["ours"]) / max(r["peak_gib"] for r in measurements[other])
        print(f"ours / {other}: {ratio:.2f} of its time, {memory:.2f} of its memory")


def main() -> None:
    """Run the command line."""
    args = arguments()
    if args.run:
        one(args)
        return
    names = [name for name in args.only.split(",") if name != "torchao" or args.peer]
    args.dtype = float_type.dtype(args.dtype, device().type)
    rate = matrix_rate(args.dtype)
    tell(args, measure(args, names), rate)


if __name__ == "__main__":
    main()
