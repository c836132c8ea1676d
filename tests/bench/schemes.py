"""What bits cost: round to nearest and the best PTQ method at many W-A-KV schemes, as a table.

    python -m tests.bench.schemes --out docs/schemes.md
    python -m tests.bench.schemes --benchmarks folder --text wikitext2 --limit 100 --out docs/schemes.md

First every method at W4A16, with the knobs of `calibrate`; the one with the least KL to the teacher is called the best,
and goes with the pipeline's baseline, round to nearest without rotation, through all schemes. Weights are calibrated
once a method and number of bits: neither inputs nor KV cache are quantized meanwhile. Scores are what `evaluate` would
give. It needs data/teacher and data/corpus (`dvc repro synthesize`), and goes on where it was stopped.
"""

import argparse
import dataclasses
import datetime
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.artifacts import environment
from pipeline.artifacts.contract import fingerprint, write_json, write_text
from pipeline.calibration import fisher
from pipeline.calibration.driver import calibrate
from pipeline.calibration.methods import PTQ_METHODS, Options
from pipeline.calibration.rotation import rotate
from pipeline.corpus.artifact import Corpus, valid_mask
from pipeline.evaluation import agreement, harness, selection, text
from pipeline.knobs import params
from pipeline.knobs.params import Params
from pipeline.knobs.scheme import from_short
from pipeline.knobs.sections import Calibrate
from pipeline.models import float_type, forward, layout, saved
from pipeline.quant.activations import Quantizer
from pipeline.quant.model import QuantizedModel

SCHEMES = ("W4A16", "W4A8", "W4A8KV8", "W4A6", "W4A8KV4", "W8A8KV4", "W8A8KV8", "W4A16KV4", "W3A16", "W2A16")
BASELINE, TURNED = "rtn", "rtn, rotated"  # the baseline of the pipeline, and `calibrate.method: rtn`
METHODS = (BASELINE, TURNED, *(method for method in PTQ_METHODS if method != BASELINE))
TWO_PERCENT = 0.98  # of the float model's accuracy: 2402.18158's bound for what may be called lossless


class Teacher:
    """The float model on texts that come again and again: its last hidden states over each are kept."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.states = model, dict[bytes, Tensor]()

    def __call__(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        key = input_ids.numpy().tobytes()
        if key not in self.states:
            self.states[key] = forward.hidden_states(self.model, input_ids)
        return SimpleNamespace(logits=forward.head_module(self.model)(self.states[key]))


class Bench:
    """The teacher, the corpus and the texts; results are kept in a JSON file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.knobs = params.load()
        self.tokenizer = saved.load_tokenizer(args.teacher)
        corpus, sequences = Corpus.load(args.corpus), self.knobs.calibrate.sequences
        self.train, self.test, self.sampled = corpus.train(sequences), corpus.test(), corpus.sampled(sequences)
        prose = text.read_text(args.text, args.benchmarks)
        self.windows = text.windows(prose, self.tokenizer, args.windows, self.knobs.evaluate.window)
        self.file = args.keep / "results.json"
        self.results: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.teacher = Teacher(self.model(None, ""))

    def weights(self, method: str, bits: int) -> QuantizedModel:
        """The model with weights of so many bits by this method, and static INT16 inputs."""
        folder = self.args.keep / f"{method.replace(', ', '-')}-W{bits}"
        if not folder.exists():
            c = float_type.settled(self.knobs.calibrate)
            gptq = {key: getattr(c, key) for key in ("damping", "block", "act_order", "scales", "descent")}
            options = Options(method.partition(",")[0], gptq, c.migration, c.batch, c.dtype, measure=False)
            model, (tokens, lengths) = saved.load_model(self.args.teacher), self.train
            valid = valid_mask(lengths, tokens.shape[1])
            if c.rotation != "none" and method != BASELINE:
                rotate(model, self.knobs.seed)
            weighed = None
            if c.fisher and PTQ_METHODS[options.method].uses_fisher:
                weighed = self._fisher(model, valid, c)
            scheme = from_short(f"W{bits}A16")
            quantized = calibrate(model, tokens, valid, scheme, options, None, lambda: None, weighed).model
            quantized.latent = {}
            quantized.save(folder, {"method": method}, {})
        return QuantizedModel.load(folder)[0]

    def _fisher(self, model: PreTrainedModel, valid: Tensor, c: Calibrate) -> dict[str, fisher.Fisher]:
        """The Fisher information of the rotated teacher, which is the same for all numbers of bits."""
        weighed = fisher.load(self.args.keep)
        if weighed is None:
            names, batch = {linear.name for linear in layout.linears(model)}, max(1, c.batch // 2)
            weighed = fisher.fisher(model, self.train[0], valid, self.sampled, batch, c.dtype, names, lambda: None)
            fisher.save(weighed, self.args.keep)
        return weighed

    def model(self, method: str | None, scheme_text: str) -> PreTrainedModel:
        """The teacher in the float type of `evaluate`, quantized if a method is given."""
        model = saved.load_model(self.args.teacher)
        if method:
            scheme = from_short(scheme_text)
            quantized = self.weights(method, scheme.weights.bits)
            if scheme.activations.dynamic:
                quantized.inputs = dict.fromkeys(quantized.inputs, Quantizer(scheme.activations))
            quantized.kv_cache = scheme.kv_cache
            quantized.put_into(model)
        return model.to(getattr(torch, float_type.dtype(self.knobs.evaluate.dtype)))

    def fidelity(self, method: str | None, scheme: str) -> dict[str, float]:
        """Perplexity, and agreement with the teacher; method None: the teacher itself."""

        def measure() -> dict[str, float]:
            model, teacher = self.model(method, scheme), self.teacher
            tokens, lengths = self.test
            valid = valid_mask(lengths, tokens.shape[1])
            scores, _ = text.perplexity(model, self.windows, lambda: None)
            return scores | agreement.agreement(model, teacher, tokens, valid, lambda: None)[0]

        return self._kept(f"{method} {scheme}", measure)

    def accuracy(self, method: str | None, scheme: str) -> dict[str, float]:
        """Zero-shot accuracy."""

        def measure() -> dict[str, float]:
            knobs, a, where = self.knobs.evaluate, self.args, self.args.keep / "datasets"
            tasks = selection.selected(knobs.groups, knobs.tasks, a.benchmarks, a.limit, knobs.items)
            model, asked = self.model(method, scheme), (tasks, a.benchmarks, a.limit, knobs.batch, where)
            return harness.accuracy(model, self.tokenizer, *asked, made=knobs.items)[0]

        return self._kept(f"{method} {scheme} accuracy", measure)

    def _kept(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        if name not in self.results:
            self.results[name] = measure()
            write_json(self.file, self.results)
            print(
                name, *(f"{key} {value:.3f}" for key, value in self.results[name].items() if "." not in key), flush=True
            )
        return self.results[name]


def row(name: str, fidelity: dict[str, float], *more: str) -> str:
    """A line of a table in Markdown."""
    cells = (
        name,
        f"{fidelity['perplexity']:.2f}",
        f"{fidelity['kl']:.3f} ± {fidelity['kl.stderr']:.3f}",
        f"{100 * fidelity['top1']:.1f} %",
        *more,
    )
    return "| " + " | ".join(cells) + " |"


def header(*more: str) -> str:
    """The head of a table in Markdown."""
    names = ("", "perplexity", "KL to teacher", "top-1 agreement", *more)
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def methods_table(bench: Bench) -> tuple[str, str]:
    """Every method at W4A16; the best one's name, and the table."""
    fidelities = {method: bench.fidelity(method, "W4A16") for method in METHODS}
    lines = [header(), row("float", bench.fidelity(None, ""))]
    lines += [row(method, scores) for method, scores in fidelities.items()]
    return min((m for m in METHODS if m != BASELINE), key=lambda m: fidelities[m]["kl"]), "\n".join(lines)


def schemes_table(bench: Bench, best: str) -> str:
    """Round to nearest and the best method at every scheme."""
    teacher = bench.accuracy(None, "")
    lines = [
        header("accuracy", f"within {100 * (1 - TWO_PERCENT):.0f} %"),
        row("float", bench.fidelity(None, ""), _percent(teacher), ""),
    ]
    for scheme in SCHEMES:
        for method in (BASELINE, best):
            scores = bench.accuracy(method, scheme)
            kept = scores["accuracy"] / teacher["accuracy"]
            verdict = f"{'yes' if kept >= TWO_PERCENT else 'no'} ({100 * (kept - 1):+.1f} %)"
            lines.append(row(f"{scheme} {method}", bench.fidelity(method, scheme), _percent(scores), verdict))
    return "\n".join(lines)


def preamble(args: argparse.Namespace, knobs: Params) -> str:
    """What the tables show and how they were made, as lines of at most 120 characters."""
    c, computed = knobs.calibrate, float_type.dtype(knobs.calibrate.dtype)
    limit = f", at most {args.limit} items each" if args.limit else ""
    ways = [f"rotation: {c.rotation}", f"fisher: {str(c.fisher).lower()}", f"descent: {c.descent}"]
    knobs_of = ", ".join(f"`{way}`" for way in ways)
    sentences = (
        f"Perplexity: {args.windows} windows of {knobs.evaluate.window} tokens of {args.text}. KL (nats a token) and "
        f"top-1 agreement: on held-out text of the teacher's own. Accuracy: zero-shot mean over six tasks{limit}; "
        '"within 2 %" is the relative loss that "Evaluating Quantized Large Language Models" (2402.18158) allows. '
        f"± is one standard error. Made by `python -m tests.bench.schemes` on {datetime.date.today()}, "
        f"{environment.processor()}, calibrated in {computed} from {c.sequences} sequences with `calibrate.` "
        f"{knobs_of} (Fisher for gptq alone), scored in {knobs.evaluate.dtype}. `{BASELINE}` is the "
        "pipeline's baseline, which is never rotated."
    )
    return textwrap.fill(sentences, 120, break_on_hyphens=False)


def _percent(scores: dict[str, float]) -> str:
    return f"{100 * scores['accuracy']:.1f} ± {100 * scores['accuracy.stderr']:.1f} %"


def main() -> None:
    """Run the command line."""
    evaluated = params.load().evaluate
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--corpus", default="data/corpus")
    parser.add_argument("--benchmarks", default=evaluated.benchmarks)
    parser.add_argument("--text", default=evaluated.text)
    parser.add_argument("--windows", type=int, default=evaluated.windows)
    parser.add_argument("--limit", type=int, default=evaluated.limit, help="items a task; 0: all")
    parser.add_argument("--keep", type=Path, default=None, help="where calibrated models and results are kept")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    knobs = dataclasses.asdict(params.load().calibrate)
    key = json.dumps([fingerprint(args.teacher), fingerprint(args.corpus), knobs, args.text, args.windows, args.limit])
    args.keep = args.keep or Path("runs/schemes")
    args.keep.mkdir(parents=True, exist_ok=True)
    kept = args.keep / "key.json"
    if kept.exists() and kept.read_text() != key:
        raise SystemExit(f"{args.keep} holds results of other inputs; remove it, or give another --keep")
    kept.write_text(key)
    bench = Bench(args)
    best, methods = methods_table(bench)
    page = f"""# What bits cost

{preamble(args, bench.knobs)}

## Methods at W4A16, per channel

{methods}

## Schemes, by round to nearest and by {best}

{schemes_table(bench, best)}
"""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, page)


if __name__ == "__main__":
    main()
