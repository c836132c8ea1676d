"""How long the whole run will take on this machine: forwards are timed, and the knobs say how many there will be.

The table below holds what was measured of whole stages, in forwards of the teacher: rough, and enough to tell minutes
from hours.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.artifacts.progress import duration
from pipeline.evaluation import selection
from pipeline.evaluation.made.table import MADE
from pipeline.evaluation.tasks import preamble, room
from pipeline.knobs.params import Params
from pipeline.models import float_type, saved

# Forwards of a token (its logits included) that a token of the stage's text takes.
DECODING = 1.6  # of a step's linears alone: attention over the cache, sampling, a last batch that is not full
NEAREST = 0.95  # calibrate: the pass of round to nearest
FISHER = 4.6  # calibrate: forward and backward with the products for the outputs' matrices
CALIBRATE = 1.6  # calibrate: the layers' forwards before and after each is quantized, without a head
TARGETS = 1.1
DISTILL = 3.0  # a step's forward and backward
GRADIENTS = 2.0  # analyze and inspect, a model
SENSITIVITY = 0.95  # analyze and inspect, a layer of a quantized model
TEXT = 1.15  # references, and evaluate, a model
COMPARED = 0.6  # evaluate: the teacher's logits and the comparison, a token
SAID = 48  # tokens of what is said to a model before an answer
# Others.
STATISTICS = 7000  # forwards of a token that a model's own tensors take in analyze and inspect, whatever the text
PROOF = 10_000  # and the check of an export
REFERENCES = 3.0  # prove: of the text that is compared, a variant
PREDICTED = 5.0  # prove: of it, a format
CONTINUED = 3.0  # prove: of a token that is written, by the student and in each format
GPTQ = 370.0  # float32 operations for each weight and input of its linear: the search for scales, rounding, descent
HEAD = 0.5  # the head's share of these, whose outputs do not make up for each other
STEP = 1.1e-8  # seconds for a weight in a step of distill: it is rounded, and the optimizer moves it
ITEM = 48  # tokens of a benchmark's item, all its answers, which share its question
CHARACTERS = 3  # of a token of a text with numbers, about
ITEMS = 2000  # of a task whose data set is not here to be counted
START = 16.0  # seconds until a stage is at work
STAGES = 16  # that a run starts
VARIANTS = 2  # that analyze looks at beside the teacher
EXPORTS = 3
SCORED = 4  # evaluate's models
WARN = 2 * 3600.0  # seconds

SEQUENCES, LENGTH = 8, 128  # of the timed forward
SIDE = 1024  # of the square matrices whose product is timed


@dataclass(frozen=True)
class Pace:
    """What this machine does in a second.

    Attributes:
        forward: tokens of the teacher's forward, logits included, in the dtype that it writes in. exact: in float32.
        decoding: tokens, one a sequence, without attention over earlier ones. operations: of a float32 product, two a
            multiplication.
        weights: of the teacher's linears. products: these, each times its linear's inputs. head: the head's weights
        times its inputs. layers: the teacher's.
    """

    forward: float
    exact: float
    decoding: float
    operations: float
    weights: float
    products: float
    head: float
    layers: int


def measure(folder: str | Path, params: Params) -> Pace:
    """Time pieces of the teacher's work, a few seconds.

    Args:
        folder: the teacher. params: the knobs, of which those of synthesize say how it decodes.
    """
    knobs = float_type.settled(params.synthesize)
    model = saved.load_model(folder, knobs.dtype)
    forward = _forward(model)
    together = max(1, min(knobs.batch, int(4 * forward)))
    decoding = _tokens_a_second(model, together, 1)
    exact = forward if knobs.dtype == "float32" else _forward(model.float())
    square = torch.ones(SIDE, SIDE)
    _ = square @ square
    began = time.perf_counter()
    _ = square @ square
    operations = 2 * SIDE**3 / (time.perf_counter() - began)
    linears, head = list(_linears(model)), getattr(model.get_output_embeddings(), "weight", None)
    return Pace(
        forward=forward,
        exact=exact,
        decoding=decoding,
        operations=operations,
        weights=float(sum(weight.numel() for weight, _ in linears)),
        products=float(sum(weight.numel() * inputs for weight, inputs in linears)),
        head=float(head.numel() * head.shape[1]) if head is not None else 0.0,
        layers=int(model.config.get_text_config().num_hidden_layers),
    )


def seconds(params: Params, pace: Pace, on_gpu: bool) -> dict[str, float]:
    """What each stage that takes long will take, in seconds, by its name.

    Args:
        on_gpu: targets and distill run on a GPU, whose pace is not known; they are left out.
    """
    p, length = params, params.synthesize.length
    text = p.synthesize.sequences * length
    calibration = p.calibrate.sequences * length
    training = (p.synthesize.sequences - p.synthesize.held_out) * length / (1 - min(p.targets.share, 0.9))
    gptq = "gptq" in p.calibrate.method
    products = pace.products + (HEAD * pace.head if p.scheme.head.bits else 0)
    forwards = NEAREST + CALIBRATE + (FISHER if gptq and p.calibrate.fisher else 0)
    looked_at = p.analyze.sequences * length * GRADIENTS + STATISTICS
    layer_by_layer = pace.layers * length * SENSITIVITY
    talk = SAID + p.references.tokens  # a turn of it
    compared = p.synthesize.held_out * length + p.references.long + 2 * p.references.dialogues * talk
    scored = p.evaluate.windows * p.evaluate.window + (1 + COMPARED) * compared
    items = _items(p)
    written = p.evaluate.instructions * (SAID + p.evaluate.instruction_tokens)
    for task, count in items.items():
        if room(task):
            written += count * (len(preamble(task)) // CHARACTERS + SAID + room(task))
    chosen = sum(count for task, count in items.items() if not room(task))
    formats = len(p.export.formats)
    proven = p.prove.sequences * length * (REFERENCES + formats * PREDICTED)
    proven += p.prove.prompts * p.prove.tokens * (1 + formats) * CONTINUED
    stage_seconds = {
        "synthesize": DECODING * text / pace.decoding,
        "calibrate": forwards * calibration / pace.forward + gptq * GPTQ * products / pace.operations,
        "analyze": (looked_at * (1 + VARIANTS) + VARIANTS * p.analyze.sensitivity_sequences * layer_by_layer)
        / pace.exact,
        "targets": 0.0 if on_gpu else TARGETS * training / pace.forward,
        "distill": 0.0
        if on_gpu
        else p.distill.steps * (DISTILL * p.distill.batch * length / pace.forward + STEP * pace.weights),
        "inspect": (2 * looked_at + p.inspect.sensitivity_sequences * layer_by_layer) / pace.exact,
        "export": EXPORTS * PROOF / pace.exact,
        "prove": len(p.prove.variants) * proven / pace.exact,
        "references": TEXT * compared / pace.exact + DECODING * 2 * p.references.dialogues * talk / pace.decoding,
        "evaluate": SCORED * ((TEXT * scored + ITEM * chosen) / pace.exact + DECODING * written / pace.decoding),
    }
    return {stage: took for stage, took in stage_seconds.items() if took}


def lines(stages: dict[str, float]) -> list[str]:
    """What to say of the whole run, and, where it is long, how to make it shorter.

    Args:
        stages: what each takes, in seconds.
    """
    whole = sum(stages.values()) + STAGES * START
    longest = sorted(stages, key=lambda stage: -stages[stage])[:3]
    parts = ", ".join(f"{stage} {duration(stages[stage])}" for stage in longest)
    said = [f"the whole run: about {duration(whole)} here, estimated by a few forwards; longest: {parts}"]
    if whole > WARN:
        said.append(
            "warning: that is over two hours; fewer synthesize.sequences, calibrate.sequences, distill.steps or "
            "evaluate.limit make it shorter, and so does dtype float32 on a processor that has no instructions for "
            "bfloat16; it may be stopped with Ctrl-C, and goes on from there when it is started again"
        )
    return said


def _forward(model: PreTrainedModel) -> float:
    """Tokens a second of a forward over several sequences."""
    _tokens_a_second(model, 1, LENGTH)  # the first takes longer
    slow = _tokens_a_second(model, 1, LENGTH)
    return _tokens_a_second(model, max(1, min(SEQUENCES, int(2 * slow / LENGTH))), LENGTH)  # some two seconds


@torch.inference_mode()
def _tokens_a_second(model: PreTrainedModel, sequences: int, length: int) -> float:
    """Of a forward over so many sequences of this length."""
    tokens = torch.ones(sequences, length, dtype=torch.int64)
    began = time.perf_counter()
    model(input_ids=tokens, use_cache=False)
    return tokens.numel() / (time.perf_counter() - began)


def _linears(model: PreTrainedModel) -> Iterator[tuple[torch.Tensor, int]]:
    """Weights of two dimensions that are not embedding or head, and how many inputs each has."""
    head = model.get_output_embeddings()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and module is not head:
            if isinstance(module, nn.Linear):
                yield weight, weight.shape[1]
            elif not isinstance(module, nn.Embedding):  # GPT-2's Conv1D
                yield weight, weight.shape[0]


def _items(params: Params) -> dict[str, int]:
    """How many items of each task are scored."""
    knobs, counts = params.evaluate, {}
    folder = knobs.benchmarks if knobs.source == "folder" else None
    for task in selection.selected(knobs.groups, knobs.tasks, folder, knobs.limit, knobs.items):
        if task in MADE:
            counts[task] = knobs.items or MADE[task].items
            continue
        items = len(selection.rows_of(task, folder, knobs.items)) or ITEMS
        counts[task] = min(items, knobs.limit or items)
    return counts
