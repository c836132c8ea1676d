"""Our GPTQ against llm-compressor's and auto-round, side by side: same teacher, corpus and text, seconds and scores.

    python -m venv peer && peer/bin/pip install torch==2.13.0 llmcompressor==0.14.0
    python -m venv auto && auto/bin/pip install torch==2.13.0 auto-round==0.15
    python -m tests.bench.gptq --llm-compressor peer/bin/python --auto-round auto/bin/python --benchmarks folder \
        --text wikitext2 --group 64

All quantize the decoder's linears to symmetric INT4, a scale an output channel or a group, and leave inputs in float;
one after the other, each in a process of its own with all cores. Seconds are of the quantization alone, without
loading. Perplexity, and KL to the teacher on held-out text of the corpus, are measured here for all, on the weights
that they leave behind. Peers have their own defaults; llm-compressor's GPTQ once more its observer `mse`, which
searches for scales as ours does. A row of ours adds to the one above: scales that are searched, coordinate descent,
`calibrate.fisher`, `calibrate.rotation`; all of it counts in its seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pipeline.calibration.driver import calibrate
from pipeline.calibration.fisher import fisher
from pipeline.calibration.methods import Options
from pipeline.calibration.rotation import rotate
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.evaluation import text
from pipeline.knobs import params
from pipeline.knobs.scheme import from_short
from pipeline.models import float_type, layout, saved
from pipeline.quant.model import QuantizedModel
from tests.bench.gptq_peers import PEERS, SCRIPTS
from tests.bench.held_out import HeldOut

PLAIN = {"scales": "minmax", "descent": 0}
OURS: dict[str, dict[str, Any]] = {  # what each changes in the knobs of GPTQ; the names say the rest
    "rtn": {},
    "gptq, min-max": PLAIN,
    "gptq, searched": {**PLAIN, "scales": "output"},
    "gptq, descended": {},
    "gptq, fisher": {},
    "gptq, rotated": {},
    "gptq, rotated, fisher": {},
}


def ours(args: argparse.Namespace, row: str, out: Path) -> None:
    """Calibrate in this process, and leave the model and the seconds behind."""
    knobs = float_type.settled(params.load().calibrate)
    model = saved.load_model(args.teacher)
    corpus = Corpus.load(args.corpus)
    tokens, lengths = corpus.train(args.sequences)
    gptq = {key: getattr(knobs, key) for key in ("damping", "block", "act_order", "scales", "descent")} | OURS[row]
    method = "rtn" if row == "rtn" else "gptq"
    options = Options(method, gptq, batch=knobs.batch, dtype=knobs.dtype, measure=False)
    valid, weighed = valid_mask(lengths, tokens.shape[1]), None
    begun = time.monotonic()
    if "rotated" in row:
        rotate(model, 0)
    if "fisher" in row:
        names = {linear.name for linear in layout.linears(model)}
        sampled = corpus.sampled(args.sequences)
        weighed = fisher(model, tokens, valid, sampled, knobs.batch, knobs.dtype, names, lambda: None)
    scheme = from_short(f"W4g{args.group}" if args.group else "W4")
    quantized = calibrate(model, tokens, valid, scheme, options, None, lambda: None, weighed).model
    seconds = time.monotonic() - begun
    quantized.save(out / "model", {}, {})
    (out / "seconds.json").write_text(json.dumps({"seconds": seconds}))


def perplexity(args: argparse.Namespace, model: PreTrainedModel) -> float:
    """Of a float32 model, in float32: in bfloat16 most of what a grid holds would be rounded away."""
    prose = text.read_text(args.text, args.benchmarks)
    windows = text.windows(prose, saved.load_tokenizer(args.teacher), args.windows, 1024)
    return text.perplexity(model, windows, lambda: None)[0]["perplexity"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for library in SCRIPTS:
        parser.add_argument(f"--{library}", dest=library, help=f"the Python of an environment that has {library}")
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--benchmarks", default="data/benchmarks")
    parser.add_argument("--text", default=text.PYDOC)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--group", type=int, default=0, help="inputs that share a scale; 0: all")
    parser.add_argument("--rows", nargs="+", choices=[*OURS, *PEERS], help="of the table; default: all that can run")
    parser.add_argument("--only", choices=[*OURS], help=argparse.SUPPRESS)
    parser.add_argument("--left", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        ours(args, args.only, args.left)
        return
    teacher = saved.load_model(args.teacher)
    print(f"{'float':22} perplexity {perplexity(args, teacher):6.2f}", flush=True)
    held_out = HeldOut.of(teacher, args.corpus)
    del teacher
    again = [sys.executable, "-m", "tests.bench.gptq", *sys.argv[1:]]
    able = [*OURS, *(name for name, peer in PEERS.items() if getattr(args, peer.library))]
    taken = {}
    for name in args.rows or able:
        with tempfile.TemporaryDirectory() as left:
            if name in PEERS:
                library, option = PEERS[name]
                knobs = args.teacher, args.corpus, str(args.sequences), str(args.group), option, left
                command = [getattr(args, library), "-c", SCRIPTS[library], *knobs]
            else:
                command = [*again, "--only", name, "--left", left]
            done = subprocess.run(command, capture_output=True, text=True, cwd=None)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            taken[name] = json.loads((Path(left) / "seconds.json").read_text())["seconds"]
            model = left_behind(args, name, Path(left))
            scores = f"perplexity {perplexity(args, model):6.2f}  KL {held_out.scores(model)['kl']:.4f}"
            print(f"{name:22} {scores}  {taken[name]:6.1f} s", flush=True)


def left_behind(args: argparse.Namespace, name: str, folder: Path) -> PreTrainedModel:
    """The model that a row has left in a folder."""
    model = saved.load_model(args.teacher)
    if name not in PEERS:
        QuantizedModel.load(folder / "model")[0].put_into(model)
        return model
    with torch.no_grad():
        for module, weight in load_file(folder / "weights.safetensors").items():
            model.get_submodule(module).weight.copy_(weight)
    return model


if __name__ == "__main__":
    main()
