"""What tests/bench/distill.py sets against each other: our loop, its floor, and the usual ways of plain.py.

The library is imported where it is needed, since the usual ways run in an environment that may not have it all.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.bench import plain

if TYPE_CHECKING:
    from pipeline.distill.targets import Targets
    from pipeline.quant.model import QuantizedModel

WARM_UP = 2
SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "smollm2": (576, 1536, 30, 9, 3, 49152),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "3b": (3072, 8192, 28, 24, 8, 128256),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
LR = 1e-4


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_of(args: argparse.Namespace) -> PreTrainedModel:
    """The teacher's folder, or a random model of a shape; float32, on the device."""
    if not args.shape:
        return AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).to(device())
    hidden, inner, layers, heads, key_heads, vocabulary = SHAPES[args.shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with device():
        return LlamaForCausalLM(config)


def tokens_of(args: argparse.Namespace, vocabulary: int) -> Tensor:
    shape = (args.steps + WARM_UP) * args.batch, args.length
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1))


def rounded_to_nearest(model: PreTrainedModel, linears: list[str], activations: bool) -> "QuantizedModel":
    """Where ours starts: W4 per channel by round to nearest, perhaps with dynamic INT8 inputs."""
    from pipeline.knobs.scheme import Activations, Weights
    from pipeline.quant.activations import Quantizer
    from pipeline.quant.model import QuantizedModel, float_tensors
    from pipeline.rounding.methods import rtn

    scheme = Weights(4)
    start = QuantizedModel(schemes=dict.fromkeys(linears, scheme))
    for name in linears:
        rounded = rtn(model.get_submodule(name).weight.detach().cpu().clone(), None, scheme)
        start.codes[name], start.steps[name], start.latent[name] = rounded.codes, rounded.step, rounded.latent
    start.floats = {name: values.cpu() for name, values in float_tensors(model, set(linears)).items()}
    if activations:
        start.inputs = dict.fromkeys(linears, Quantizer(Activations(8, dynamic=True)))
    return start


def recorded(args: argparse.Namespace, model: PreTrainedModel, linears: list[str], tokens: Tensor) -> "Targets":
    """What the teacher makes of the tokens, its linears in the forward's dtype meanwhile."""
    from pipeline.distill.targets import record

    masters = [module.weight for module in map(model.get_submodule, linears)]
    kept = [weight.data for weight in masters]
    for weight in masters:
        weight.data = weight.data.to(getattr(torch, args.dtype))
    targets = record(model, tokens, torch.full((len(tokens),), args.length), args.batch, args.dtype, lambda n: None)
    for weight, values in zip(masters, kept, strict=True):
        weight.data = values
    return targets


def ours(args: argparse.Namespace, quantized: bool) -> dict:
    """Our loop, from round to nearest, or on weights that are not quantized."""
    from pipeline.distill import loop
    from pipeline.distill.parallel import Processes
    from pipeline.distill.prepare import prepare
    from pipeline.distill.schedule import Schedule
    from pipeline.distill.student import Learns, Student
    from pipeline.losses.chunked import LossWeights
    from pipeline.models import forward, layout
    from pipeline.quant.model import FLOAT_DTYPE

    model = model_of(args)
    model.eval().requires_grad_(False)
    tokens = tokens_of(args, model.config.vocab_size)
    dtype = getattr(torch, args.dtype)
    head = forward.head_weight(model).detach().to(dtype, copy=True)
    linears = [linear.name for linear in layout.linears(model)]
    start = rounded_to_nearest(model, linears, args.activations)
    begun = time.monotonic()
    data = recorded(args, model, linears, tokens)
    teacher_seconds = (time.monotonic() - begun) / (args.steps + WARM_UP)

    class Unquantized(Student):
        """Whose weights are the masters, rounded to the forward's dtype alone."""

        @torch.no_grad()
        def refresh(self) -> None:
            for key, module in self.modules.items():
                module.copy_(self.masters[key] if module.ndim > 1 else self.masters[key].to(FLOAT_DTYPE))

    student = prepare(model, start, {}, Learns(), dtype, Processes(device=device()))
    if not quantized:
        student.__class__ = Unquantized
        student.refresh()
    if args.gradient_checkpointing:
        loop.save_memory(model)
    steps = args.steps + WARM_UP
    schedule = Schedule(steps, args.batch, args.accumulate, LR, LR, 0.0, 1.0, 0.0, 1.0, steps + 1, args.dtype, 0)
    weights = LossWeights(0.0, 1.0, 1.0, args.chunk)
    seconds, latest = [], [time.monotonic()]

    def tick(row: dict) -> None:
        latest.append(time.monotonic())
        seconds.append(latest[-1] - latest[-2])

    def begin(done: int) -> loop.Report:
        latest.append(time.monotonic())
        return tick

    with tempfile.TemporaryDirectory() as folder:
        log = loop.train(student, head, data, schedule, weights, Path(folder), begin)
    return {"seconds": seconds[WARM_UP:], "teacher": teacher_seconds, "kl": log[-1]["kl"]}


def usual(args: argparse.Namespace, way: str) -> dict:
    """The usual ways, see plain.py."""
    student, teacher = model_of(args), model_of(args)
    tokens = tokens_of(args, student.config.vocab_size).to(device())
    log = plain.train(way, student, teacher, tokens, args.batch, args.steps + WARM_UP, LR, args.dtype)
    return {"seconds": [row["seconds"] for row in log[WARM_UP:]], "teacher": 0.0, "kl": log[-1]["kl"]}


CONTENDERS = {
    "floor": lambda args: ours(args, False),
    "ours": lambda args: ours(args, True),
    "plain": lambda args: usual(args, "plain"),
    "torchao": lambda args: usual(args, "torchao"),
}
