"""params.yaml read and checked whole before any work.

sections.py has the types of the knobs, `_ranges` here what of the right type makes no sense. Stages unpack a section
into plain values; the library never sees it.
"""

from pathlib import Path
from typing import Any

import yaml

from pipeline.knobs import reading
from pipeline.knobs.scheme import Scheme
from pipeline.knobs.sections import Distill, Params


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        ValueError: the file is no YAML, or knobs are unknown, missing, there twice, ill-typed or out of range: all of
            them, a line each.
    """
    text = Path(path).read_text()
    try:
        tree = parsed(text)
        problems = reading.twice(yaml.compose(text, yaml.SafeLoader), "")
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    params = reading.section(Params, tree, "", problems)
    if not problems:
        problems += _ranges(params)
    if problems:
        raise ValueError(f"{path} has {len(problems)} bad knob(s):\n  " + "\n  ".join(problems))
    return params


def parsed(text: str) -> Any:
    """A YAML text, its numbers as YAML 1.2 has them.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=reading.Loader)


def _ranges(p: Params) -> list[str]:
    """What is of the right type and still makes no sense."""
    at_least = {
        "synthesize.sequences": (p.synthesize.sequences, 2),
        "synthesize.held_out": (p.synthesize.held_out, 1),
        "synthesize.length": (p.synthesize.length, 2),
        "synthesize.batch": (p.synthesize.batch, 1),
        "calibrate.sequences": (p.calibrate.sequences, 1),
        "calibrate.batch": (p.calibrate.batch, 1),
        "calibrate.block": (p.calibrate.block, 1),
        "calibrate.descent": (p.calibrate.descent, 0),
        "analyze.sequences": (p.analyze.sequences, 1),
        "analyze.batch": (p.analyze.batch, 1),
        "analyze.sensitivity_sequences": (p.analyze.sensitivity_sequences, 0),
        "analyze.average_bits": (p.analyze.average_bits, min(p.analyze.plan_bits)),
        "inspect.sensitivity_sequences": (p.inspect.sensitivity_sequences, 0),
        "targets.batch": (p.targets.batch, 1),
        "distill.steps": (p.distill.steps, 1),
        "distill.seed": (p.distill.seed, 0),
        "distill.accumulate": (p.distill.accumulate, 1),
        "distill.processes": (p.distill.processes, 1),
        "distill.hidden": (p.distill.hidden, 0),
        "distill.batch": (p.distill.batch, 1),
        "distill.chunk": (p.distill.chunk, 1),
        "distill.checkpoint_every": (p.distill.checkpoint_every, 1),
        "evaluate.limit": (p.evaluate.limit, 0),
        "evaluate.windows": (p.evaluate.windows, 2),
        "evaluate.window": (p.evaluate.window, 2),
        "evaluate.batch": (p.evaluate.batch, 1),
        "analyze.ce": (p.analyze.ce, 0),
        "analyze.kl": (p.analyze.kl, 0),
        "distill.ce": (p.distill.ce, 0),
        "distill.kl": (p.distill.kl, 0),
        "distill.weight_decay": (p.distill.weight_decay, 0),
        "scheme.weights.group": (p.scheme.weights.group, 0),
        "scheme.kv_cache.group": (p.scheme.kv_cache.group, 0),
    }
    problems = [
        f"{name}: must be at least {low}, got {value}" for name, (value, low) in at_least.items() if value < low
    ]
    above_zero = {
        "synthesize.temperature": p.synthesize.temperature,
        "distill.lr": 1.0 if p.distill.lr == "auto" else p.distill.lr,
        "distill.scale_lr": p.distill.scale_lr,
        "distill.clip": p.distill.clip,
        "distill.temperature": p.distill.temperature,
    }
    problems += [f"{name}: must be above 0, got {value}" for name, value in above_zero.items() if not value > 0]
    shares = {
        "synthesize.chat": p.synthesize.chat,
        "targets.share": p.targets.share,
        "distill.warmup": p.distill.warmup,
        "distill.min_lr": p.distill.min_lr,
        "calibrate.migration": p.calibrate.migration,
        "calibrate.coverage": p.calibrate.coverage,
    }
    problems += [f"{name}: must lie in 0 to 1, got {value}" for name, value in shares.items() if not 0 <= value <= 1]

    if p.evaluate.limit == 1:
        problems.append("evaluate.limit: 1 item has no standard error; take 2 or more, or 0 for all")
    if not 0 < p.calibrate.damping <= 1:
        problems.append(f"calibrate.damping: must lie above 0 and not above 1, got {p.calibrate.damping}")
    problems += _scheme_ranges(p.scheme, p.export.format)

    if p.calibrate.fisher:
        way_out = "set calibrate.fisher to false, or it to"
        if p.synthesize.strategy == "greedy":
            problems.append(
                f"synthesize.strategy: greedy text is no sample of the teacher, which calibrate.fisher needs; "
                f"{way_out} hybrid or sampled"
            )
        if 0 < p.synthesize.temperature != 1:
            problems.append(
                f"synthesize.temperature: text at {p.synthesize.temperature} is no sample of the teacher, which "
                f"calibrate.fisher needs; {way_out} 1"
            )
    if p.synthesize.chat and p.synthesize.strategy == "greedy":
        problems.append("synthesize.chat: greedy text of one opening is always the same; set it to 0")
    train = p.synthesize.sequences - p.synthesize.held_out
    prefix = p.synthesize.greedy_prefix
    if len(prefix) != 2 or not 0 <= prefix[0] <= prefix[-1] < p.synthesize.length:
        problems.append(f"synthesize.greedy_prefix: expected [fewest, most] below the length, got {prefix}")
    for name, wanted in (
        ("calibrate.sequences", p.calibrate.sequences),
        ("analyze.sequences", p.analyze.sequences),
        ("distill.batch", p.distill.batch),
    ):
        if wanted > train:
            problems.append(
                f"{name}: asks for {wanted} sequences, but the corpus has {train} for training "
                f"(synthesize.sequences {p.synthesize.sequences} less synthesize.held_out {p.synthesize.held_out})"
            )
    for name, few in (
        ("analyze", p.analyze.sensitivity_sequences),
        ("inspect", p.inspect.sensitivity_sequences),
    ):
        if few > p.analyze.sequences:
            problems.append(
                f"{name}.sensitivity_sequences: {few} are more than analyze.sequences, {p.analyze.sequences}"
            )
    if not p.analyze.ce + p.analyze.kl > 0:
        problems.append("analyze.ce, analyze.kl: both are 0, which leaves no loss")
    problems += _distill_ranges(p.distill)
    if p.targets.share and not Path(p.targets.text).exists():
        problems.append(f"targets.text: {p.targets.text!r} does not exist (targets.share is {p.targets.share})")
    if p.teacher.source == "path" and not Path(p.teacher.path).exists():
        problems.append(f"teacher.path: {p.teacher.path!r} does not exist (teacher.source is path)")
    if p.evaluate.source == "folder":
        folder = Path(p.evaluate.benchmarks)
        wanted_files = [folder / f"{t}.jsonl" for t in p.evaluate.tasks]
        if p.evaluate.text != "pydoc":
            wanted_files.append(folder / f"{p.evaluate.text}.jsonl")
        if not folder.is_dir():
            problems.append(f"evaluate.benchmarks: {p.evaluate.benchmarks!r} is not a folder")
        else:
            problems += [
                f"evaluate: benchmark file {file} does not exist" for file in wanted_files if not file.is_file()
            ]
    return problems


def _distill_ranges(d: Distill) -> list[str]:
    problems = []
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


def _scheme_ranges(chosen: Scheme, export_format: str) -> list[str]:
    problems = []
    sections = [("scheme", chosen.activations)]
    weights = {
        "scheme": chosen.weights,
        **{f"scheme.overrides[{i}]": o.weights for i, o in enumerate(chosen.overrides)},
    }
    problems += [
        f"{name}.weights.symmetric: export.format {export_format!r} holds no asymmetric weights; take 'dequantized', "
        "or symmetric ones"
        for name, given in weights.items()
        if given is not None and given.bits and not given.symmetric and export_format == "compressed-tensors"
    ]
    for i, override in enumerate(chosen.overrides):
        name = f"scheme.overrides[{i}]"
        if override.weights is not None and override.weights.group < 0:
            problems.append(f"{name}.weights.group: must be at least 0, got {override.weights.group}")
        if override.activations is not None:
            sections.append((name, override.activations))
    problems += [
        f"{name}.activations.percentile: must lie above 50 and not above 100, got {activations.percentile}"
        for name, activations in sections
        if not 50 < activations.percentile <= 100
    ]
    return problems
