"""params.yaml read and checked whole before any work.

sections.py and checking_sections.py have the types and ranges of the knobs, `_together` here what makes no sense beside
other knobs. Stages unpack a section into plain values; the library never sees it.
"""

from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.knobs import messages, yaml_1_2
from pipeline.knobs.checking_sections import Evaluate, Prove, References, Report
from pipeline.knobs.kinds import FORBID, Format, Int
from pipeline.knobs.long_scheme import AnyScheme
from pipeline.knobs.scheme import Scheme
from pipeline.knobs.sections import (
    Analyze,
    Calibrate,
    Distill,
    Export,
    Inspect,
    Synthesize,
    Targets,
    Teacher,
)

ASYMMETRIC = ("onnx", "mlx", "dequantized")  # formats that hold asymmetric weights


@dataclass(frozen=True, kw_only=True, config=FORBID)
class Params:
    """All of them: shared ones, then one section a stage, in the order in which the stages run."""

    seed: Int = Field(description="every random stream of every stage derives from it")
    scheme: AnyScheme = Field(
        description=(
            "W: weights, 2 to 8 bits, symmetric, a scale an output channel (W4g64: a group of 64 inputs); A16: "
            "static INT16 inputs, a scale a tensor; A4 to A8: dynamic, a scale a token; KV2 to KV8: the KV cache, "
            "a scale a token; E8, H6: embedding and head, 2 to 8 bits, a scale a row (E8g32: a group of 32); what is "
            "left out stays in float. Or long, with every field:"
        )
    )
    teacher: Teacher
    synthesize: Synthesize
    calibrate: Calibrate
    analyze: Analyze
    targets: Targets
    distill: Distill
    inspect: Inspect
    export: Export
    prove: Prove
    references: References
    evaluate: Evaluate
    report: Report


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        ValueError: the file is no YAML, or knobs are unknown, missing, there twice, ill-typed or out of range: all of
            them, a line each, with the line in the file where there is one.
    """
    text = Path(path).read_text()
    try:
        tree, nodes = yaml_1_2.parse(text), yaml_1_2.compose(text)
    except yaml_1_2.Error as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    problems, params = yaml_1_2.twice(nodes), None
    try:
        params = TypeAdapter(Params).validate_python(tree)
    except ValidationError as error:
        for place, problem in messages.lines(error, Params):
            line = yaml_1_2.line_of(nodes, place)
            problems.append(f"{problem} (line {line})" if line else problem)
    if params is not None and not problems:
        problems += _together(params)
    if problems or params is None:
        raise ValueError(f"{path} has {len(problems)} bad knob(s):\n  " + "\n  ".join(problems))
    return params


def _together(p: Params) -> list[str]:
    """What is sound by itself and makes no sense beside other knobs, or where it is."""
    problems = []
    if p.analyze.average_bits < min(p.analyze.plan_bits):
        least = min(p.analyze.plan_bits)
        problems.append(f"analyze.average_bits: must be at least {least}, got {p.analyze.average_bits}")
    if not p.analyze.ce + p.analyze.kl > 0:
        problems.append("analyze.ce, analyze.kl: both are 0, which leaves no loss")
    if p.evaluate.format not in p.export.formats:
        problems.append(
            f"evaluate.format: {p.evaluate.format} is not in export.formats, {p.export.formats}; add it there"
        )
    if p.export.qnn_chunk >= p.export.qnn_context:
        problems.append(
            f"export.qnn_chunk: a chunk of {p.export.qnn_chunk} leaves no place before it in the "
            f"{p.export.qnn_context} of export.qnn_context; make it shorter"
        )
    if len(set(p.export.formats)) < len(p.export.formats):
        problems.append(f"export.formats: each once, got {p.export.formats}")
    if len(set(p.prove.variants)) < len(p.prove.variants):
        problems.append(f"prove.variants: each once, got {p.prove.variants}")
    for knob, count in (("references.long", p.references.long), ("references.dialogues", p.references.dialogues)):
        if count == 1:
            problems.append(f"{knob}: 1 is too few to score; take 2 or more, or 0 for none")
    if p.evaluate.instructions == 1:
        problems.append("evaluate.instructions: 1 has no standard error; take 2 or more, or 0 for none")
    if len(set(p.evaluate.groups)) < len(p.evaluate.groups):
        problems.append(f"evaluate.groups: each once, got {p.evaluate.groups}")
    for knob, value, none in (("limit", p.evaluate.limit, "for all"), ("items", p.evaluate.items, "for their number")):
        if value == 1:
            problems.append(f"evaluate.{knob}: 1 item has no standard error; take 2 or more, or 0 {none}")
    return [
        *problems,
        *_exportable(p.scheme, p.export.formats),
        *_of_samples(p),
        *_of_sequences(p),
        *_of_distill(p.distill, p.scheme),
        *_of_files(p),
    ]


def _of_samples(p: Params) -> list[str]:
    """What of the text is no sample of the teacher, where one is needed."""
    problems = []
    if p.calibrate.fisher:
        way_out = "set calibrate.fisher to false, or it to"
        if p.synthesize.strategy == "greedy":
            problems.append(
                f"synthesize.strategy: greedy text is no sample of the teacher, which calibrate.fisher needs; "
                f"{way_out} hybrid or sampled"
            )
        if p.synthesize.temperature != 1:
            problems.append(
                f"synthesize.temperature: text at {p.synthesize.temperature} is no sample of the teacher, which "
                f"calibrate.fisher needs; {way_out} 1"
            )
    if p.synthesize.chat and p.synthesize.strategy == "greedy":
        problems.append("synthesize.chat: greedy text of one opening is always the same; set it to 0")
    return problems


def _of_sequences(p: Params) -> list[str]:
    """What asks for more sequences, or for longer ones, than the corpus has."""
    problems = []
    prefix = p.synthesize.greedy_prefix
    if len(prefix) != 2 or not 0 <= prefix[0] <= prefix[-1] < p.synthesize.length:
        problems.append(f"synthesize.greedy_prefix: expected [fewest, most] below the length, got {prefix}")
    train = p.synthesize.sequences - p.synthesize.held_out
    asked = {
        "calibrate.sequences": p.calibrate.sequences,
        "analyze.sequences": p.analyze.sequences,
        "distill.batch": p.distill.batch,
    }
    problems += [
        f"{name}: asks for {count} sequences, but the corpus has {train} for training "
        f"(synthesize.sequences {p.synthesize.sequences} less synthesize.held_out {p.synthesize.held_out})"
        for name, count in asked.items()
        if count > train
    ]
    problems += [
        f"prove.{name}: {count} are more than the {p.synthesize.held_out} of synthesize.held_out"
        for name, count in (("sequences", p.prove.sequences), ("prompts", p.prove.prompts))
        if count > p.synthesize.held_out
    ]
    if p.prove.prompt > p.synthesize.length:
        problems.append(f"prove.prompt: {p.prove.prompt} tokens are more than the {p.synthesize.length} of a sequence")
    few = {"analyze": p.analyze.sensitivity_sequences, "inspect": p.inspect.sensitivity_sequences}
    return problems + [
        f"{name}.sensitivity_sequences: {count} are more than analyze.sequences, {p.analyze.sequences}"
        for name, count in few.items()
        if count > p.analyze.sequences
    ]


def _of_files(p: Params) -> list[str]:
    """Files that are asked for and not there."""
    problems = []
    if p.targets.share and not Path(p.targets.text).exists():
        problems.append(f"targets.text: {p.targets.text!r} does not exist (targets.share is {p.targets.share})")
    if p.teacher.source == "path" and not Path(p.teacher.path).exists():
        problems.append(f"teacher.path: {p.teacher.path!r} does not exist (teacher.source is path)")
    folder = Path(p.evaluate.benchmarks)
    if p.evaluate.source == "folder" and not folder.is_dir():
        problems.append(f"evaluate.benchmarks: {p.evaluate.benchmarks!r} is not a folder")
    elif p.evaluate.source == "folder" and p.evaluate.text != "pydoc":
        file = folder / f"{p.evaluate.text}.jsonl"
        if not file.is_file():
            problems.append(f"evaluate: benchmark file {file} does not exist")
    return problems


def _of_distill(d: Distill, scheme: Scheme) -> list[str]:
    problems = []
    if d.train_embeddings and scheme.embedding.bits and scheme.head.bits:
        problems.append(
            "distill.train_embeddings: embedding and head keep the codes that scheme.embedding and scheme.head give "
            "them; set it to false, or leave one of them in float"
        )
    if not d.ce + d.kl + d.hidden > 0:
        problems.append("distill.ce, distill.kl, distill.hidden: all are 0, which leaves no loss")
    if d.batch % (max(d.processes, 1) * max(d.accumulate, 1)):
        problems.append(
            f"distill.batch: {d.batch} sequences do not divide among {d.processes} processes x {d.accumulate} forwards "
            "(distill.processes, distill.accumulate)"
        )
    if d.shard and d.processes == 1:
        problems.append("distill.shard: there is one process to share with; set distill.processes to 2 or more")
    return problems


def _exportable(chosen: Scheme, formats: list[Format]) -> list[str]:
    """What of a scheme the formats of the export do not hold, whatever the model."""
    weights = {
        "scheme.weights": chosen.weights,
        "scheme.embedding": chosen.embedding,
        "scheme.head": chosen.head,
        **{f"scheme.overrides[{i}].weights": o.weights for i, o in enumerate(chosen.overrides)},
    }
    quantized = {name: grid for name, grid in weights.items() if grid is not None and grid.bits}
    symmetric_only = [name for name in formats if name not in ASYMMETRIC]
    problems = [
        f"{name}.symmetric: {' and '.join(symmetric_only)} of export.formats hold no asymmetric weights; take "
        f"[{', '.join(ASYMMETRIC)}], or symmetric ones"
        for name, grid in quantized.items()
        if symmetric_only and not grid.symmetric
    ]
    return problems + [
        f"{name}.group: {grid.group} is no multiple of 32, the width of a block of gguf, which is in export.formats; "
        "take 32, 64, 128, or 0 for a whole row, or leave gguf out"
        for name, grid in quantized.items()
        if "gguf" in formats and grid.group % 32
    ]
