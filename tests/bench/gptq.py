"""Our GPTQ against llm-compressor's, side by side: same teacher, same corpus, same text, seconds and perplexity.

    python -m venv peer && peer/bin/pip install llmcompressor==0.14.0
    python -m tests.bench.gptq --peer peer/bin/python --benchmarks folder --text wikitext2

Both quantize the decoder's linears to symmetric INT4, a scale an output channel, and leave inputs in float; one after
the other, each in a process of its own with all cores. Seconds are of the quantization alone, without loading.
Perplexity is measured here for both, on the weights that they leave behind. llm-compressor's GPTQ has its own defaults,
and once its observer `mse`, which searches for scales as ours does. A row of ours adds to the one above: scales that
are searched, coordinate descent, `calibrate.rotation`, `calibrate.fisher`; all of it counts in its seconds.
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

PLAIN = {"scales": "minmax", "descent": 0}
OURS: dict[str, dict[str, Any]] = {  # what each changes in the knobs of GPTQ; the names say the rest
    "rtn": {},
    "gptq, min-max": PLAIN,
    "gptq, searched": {**PLAIN, "scales": "output"},
    "gptq, descended": {},
    "gptq, rotated": {},
    "gptq, rotated, fisher": {},
}
PEERS = {"llm-compressor": "", "llm-compressor, mse": "mse"}  # and its observer; empty: its own default
PEER = """
import json, sys, time
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

teacher, corpus, sequences, out, observer = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
model = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(teacher)
tokens = load_file(corpus + "/corpus.safetensors")["tokens"][:sequences].long()
data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
if observer:
    weights["observer"] = observer
recipe = GPTQModifier(ignore=["lm_head"], config_groups={"all": {"targets": ["Linear"], "weights": weights}})
begun = time.monotonic()
oneshot(model=model, dataset=data, recipe=recipe, tokenizer=tokenizer, num_calibration_samples=sequences,
        max_seq_length=tokens.shape[1])
seconds = time.monotonic() - begun
left = {}
for name, module in model.named_modules():
    if hasattr(module, "weight_scale"):
        scale = module.weight_scale.float()
        left[name] = ((module.weight.float() / scale).round().clamp(-8, 7) * scale).contiguous()
save_file(left, out + "/weights.safetensors")
json.dump({"seconds": seconds}, open(out + "/seconds.json", "w"))
"""


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
    quantized = calibrate(model, tokens, valid, from_short("W4"), options, None, lambda: None, weighed).model
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
    parser.add_argument("--peer", help="the Python of an environment that has llm-compressor")
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--benchmarks", default="data/benchmarks")
    parser.add_argument("--text", default=text.PYDOC)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--only", choices=[*OURS], help=argparse.SUPPRESS)
    parser.add_argument("--left", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        ours(args, args.only, args.left)
        return
    teacher = saved.load_model(args.teacher)
    print(f"{'float':22} perplexity {perplexity(args, teacher):6.2f}", flush=True)
    again = [sys.executable, "-m", "tests.bench.gptq", *sys.argv[1:]]
    taken = {}
    for name in (*OURS, *(PEERS if args.peer else ())):
        with tempfile.TemporaryDirectory() as left:
            if name in PEERS:
                command = [args.peer, "-c", PEER, args.teacher, args.corpus, str(args.sequences), left, PEERS[name]]
            else:
                command = [*again, "--only", name, "--left", left]
            done = subprocess.run(command, capture_output=True, text=True, cwd=None)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            taken[name] = json.loads((Path(left) / "seconds.json").read_text())["seconds"]
            model = saved.load_model(args.teacher)
            if name in PEERS:
                with torch.no_grad():
                    for module, weight in load_file(Path(left) / "weights.safetensors").items():
                        model.get_submodule(module).weight.copy_(weight)
            else:
                QuantizedModel.load(Path(left) / "model")[0].put_into(model)
            print(f"{name:22} perplexity {perplexity(args, model):6.2f}  {taken[name]:6.1f} s", flush=True)
    if args.peer:
        for name in [*OURS][1:]:
            shares = (f"{taken[name] / taken[peer]:.2f} of {peer}" for peer in PEERS)
            print(f"{name} takes", " and ".join(shares))


if __name__ == "__main__":
    main()
