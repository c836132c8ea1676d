"""params.yaml as frozen dataclasses, one a section, checked whole before any work.

The comments in params.yaml say what each knob means. Here is what may stand there: a field's type, the names that a
`Literal` admits, and the ranges in `_ranges`. Stages unpack a section into plain values; the library never sees it.
"""

import math
import re
import types
import typing
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline import scheme
from pipeline.names import unknown
from pipeline.scheme import Scheme

Dtype = Literal["bfloat16", "float32"]
Method = Literal["rtn", "mse", "gptq", "awq", "smoothquant", "awq+gptq", "smoothquant+gptq"]
FreezeName = Literal["none", "o", "v", "ov", "qk", "qkv", "qkvo", "mlp", "auto"]
PlanBits = Literal[2, 3, 4, 5, 6, 7, 8]
Task = Literal["piqa", "hellaswag", "winogrande", "openbookqa", "arc_easy", "arc_challenge"]


@dataclass(frozen=True)
class Teacher:
    source: Literal["pypi", "hub", "path"]
    package: str
    version: str
    sha256: str
    repo: str
    revision: str
    path: str


@dataclass(frozen=True)
class Synthesize:
    strategy: Literal["hybrid", "sampled", "greedy"]
    sequences: int
    held_out: int
    length: int
    greedy_prefix: list[int]
    temperature: float
    stop_at_eos: bool
    batch: int
    dtype: Dtype


@dataclass(frozen=True)
class Calibrate:
    method: Method
    sequences: int
    batch: int
    dtype: Dtype
    damping: float
    block: int
    act_order: bool
    scales: Literal["output", "mse", "minmax"]
    migration: float


@dataclass(frozen=True)
class Analyze:
    sequences: int
    batch: int
    ce: float
    kl: float
    sensitivity_sequences: int
    average_bits: float
    plan_bits: list[PlanBits]


@dataclass(frozen=True)
class Distill:
    freeze: FreezeName | list[str]
    scale: Literal["static", "minmax"]
    train_norms: bool
    seed: int
    steps: int
    batch: int
    lr: float
    warmup: float
    min_lr: float
    weight_decay: float
    clip: float
    ce: float
    kl: float
    temperature: float
    chunk: int
    dtype: Dtype
    checkpoint_every: int


@dataclass(frozen=True)
class Inspect:
    sensitivity_sequences: int


@dataclass(frozen=True)
class Export:
    format: Literal["compressed-tensors", "dequantized"]


@dataclass(frozen=True)
class Evaluate:
    source: Literal["folder", "hub"]
    benchmarks: str
    tasks: list[Task]
    limit: int
    text: str
    windows: int
    window: int
    batch: int
    dtype: Dtype


@dataclass(frozen=True)
class Report:
    title: str


@dataclass(frozen=True)
class Params:
    seed: int
    scheme: Scheme
    teacher: Teacher
    synthesize: Synthesize
    calibrate: Calibrate
    analyze: Analyze
    distill: Distill
    inspect: Inspect
    export: Export
    evaluate: Evaluate
    report: Report


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        ValueError: the file is no YAML, or knobs are unknown, missing, there twice, ill-typed or out of range: all of
            them, a line each.
    """
    text = Path(path).read_text()
    try:
        tree = yaml.safe_load(text)
        problems = _twice(yaml.compose(text, yaml.SafeLoader), "")
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    params = _section(Params, tree, "", problems)
    if not problems:
        problems += _ranges(params)
    if problems:
        raise ValueError(f"{path} has {len(problems)} bad knob(s):\n  " + "\n  ".join(problems))
    return params


def _twice(node: yaml.Node | None, name: str) -> list[str]:
    """The knobs that stand twice in a section, of which YAML keeps the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        return [problem for i, entry in enumerate(node.value) for problem in _twice(entry, f"{name}[{i}]")]
    problems, lines = [], dict[str, int]()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        knob, line = f"{name}.{key.value}".removeprefix("."), key.start_mark.line + 1
        if knob in lines:
            problems.append(f"{knob}: stands twice, in lines {lines[knob]} and {line}")
        lines[knob] = line
        problems += _twice(value, knob)
    return problems


def _section(kind: Any, tree: Any, prefix: str, problems: list[str]) -> Any:
    """A dataclass from a mapping; what is wrong is added to `problems`, and None stands for it."""
    values = _given(kind, tree, prefix, problems)
    if values is None:
        return None
    missing = [name for name in typing.get_type_hints(kind) if name not in values]
    problems += [f"{prefix}{name}: missing" for name in missing]
    return None if missing else kind(**values)


def _given(kind: Any, tree: Any, prefix: str, problems: list[str]) -> dict[str, Any] | None:
    """The dataclass's fields that a mapping holds; what is wrong is added to `problems`."""
    if not isinstance(tree, dict):
        problems.append(f"{prefix.rstrip('.') or 'the file'}: expected a section of knobs, got {tree!r}")
        return None
    hints = typing.get_type_hints(kind)
    problems += [unknown("knob", f"{prefix}{key}", (prefix + n for n in hints)) for key in tree if key not in hints]
    values = {}
    for field, hint in hints.items():
        if field not in tree:
            continue
        name, value = prefix + field, tree[field]
        if hint is Scheme:
            values[field] = _scheme(value, name, problems)
        elif is_dataclass(hint):
            values[field] = _section(hint, value, name + ".", problems)
        else:
            values[field] = _value(hint, value, name, problems)
    return values


def _scheme(tree: Any, name: str, problems: list[str]) -> Scheme | None:
    """A scheme written short or long; an override's fields that are left out are the scheme's own."""
    if isinstance(tree, str):
        try:
            return scheme.from_short(tree)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            return None
    if not isinstance(tree, dict):
        problems.append(f"{name}: expected W4A8KV4 and the like, or a section of knobs, got {tree!r}")
        return None
    entries = tree.get("overrides", [])
    if not isinstance(entries, list):
        problems.append(f"{name}.overrides: expected a list, got {entries!r}")
        entries = []
    base = _section(_SchemeLong, {key: tree[key] for key in tree if key != "overrides"}, name + ".", problems)
    overrides = [_override(base, entry, f"{name}.overrides[{i}].", problems) for i, entry in enumerate(entries)]
    if base is None:
        return None
    return Scheme(base.weights, base.activations, base.kv_cache, tuple(o for o in overrides if o is not None))


@dataclass(frozen=True)
class _SchemeLong:
    """The long form, less its overrides."""

    weights: scheme.Weights
    activations: scheme.Activations
    kv_cache: scheme.KVCache


def _override(base: _SchemeLong | None, entry: Any, prefix: str, problems: list[str]) -> scheme.Override | None:
    kinds = {"weights": scheme.Weights, "activations": scheme.Activations}
    if not isinstance(entry, dict) or not isinstance(entry.get("match"), str) or not set(entry) & set(kinds):
        problems.append(f"{prefix.rstrip('.')}: expected a match with weights or activations, got {entry!r}")
        return None
    known = ("match", *kinds)
    problems += [unknown("knob", f"{prefix}{key}", (prefix + n for n in known)) for key in entry if key not in known]
    found: dict[str, Any] = {}
    for part in [part for part in kinds if part in entry]:
        given, own = _given(kinds[part], entry[part], f"{prefix}{part}.", problems), getattr(base, part, None)
        found[part] = None if given is None or own is None else replace(own, **given)
    return scheme.Override(entry["match"], **found)


def _value(hint: Any, value: Any, name: str, problems: list[str]) -> Any:
    """A knob's value, an int widened to float where a float is due; what is wrong is added to `problems`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        list_hint, other = sorted(typing.get_args(hint), key=lambda arm: typing.get_origin(arm) is not list)
        return _value(list_hint if isinstance(value, list) else other, value, name, problems)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            meant = [choice for choice in choices if str(choice) == str(value)]  # '4' for 4
            problems += [f"{name}: expected {type(m).__name__}, got {value!r} ({type(value).__name__})" for m in meant]
            if not meant:
                problems.append(f"{name}: " + unknown("value", value, map(str, choices)))
    elif typing.get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            problems.append(f"{name}: expected a list with at least one entry, got {value!r}")
        else:
            (entry,) = typing.get_args(hint)
            return [_value(entry, item, f"{name}[{i}]", problems) for i, item in enumerate(value)]
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is float and type(value) is float and not math.isfinite(value):
        problems.append(f"{name}: expected a finite number, got {value}")
    elif type(value) is not hint:
        wayout = f"; in YAML this is text, write {_yaml_float(value)}" if hint is float and _yaml_float(value) else ""
        problems.append(f"{name}: expected {hint.__name__}, got {value!r} ({type(value).__name__}){wayout}")
    return value


def _yaml_float(text: object) -> str | None:
    """How YAML 1.1 writes a number that has an exponent: with a point and a sign, 1.0e-4 for 1e-4. None: it is none."""
    found = re.fullmatch(r"([-+]?)(\d*)\.?(\d*)[eE]([-+]?)(\d+)", text) if isinstance(text, str) else None
    if found is None or not found[2] + found[3]:
        return None
    return f"{found[1]}{found[2] or 0}.{found[3] or 0}e{found[4] or '+'}{found[5]}"


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
        "analyze.sequences": (p.analyze.sequences, 1),
        "analyze.batch": (p.analyze.batch, 1),
        "analyze.sensitivity_sequences": (p.analyze.sensitivity_sequences, 0),
        "analyze.average_bits": (p.analyze.average_bits, min(p.analyze.plan_bits)),
        "inspect.sensitivity_sequences": (p.inspect.sensitivity_sequences, 0),
        "distill.steps": (p.distill.steps, 1),
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
        "distill.lr": p.distill.lr,
        "distill.clip": p.distill.clip,
        "distill.temperature": p.distill.temperature,
    }
    problems += [f"{name}: must be above 0, got {value}" for name, value in above_zero.items() if not value > 0]
    shares = {
        "distill.warmup": p.distill.warmup,
        "distill.min_lr": p.distill.min_lr,
        "calibrate.migration": p.calibrate.migration,
    }
    problems += [f"{name}: must lie in 0 to 1, got {value}" for name, value in shares.items() if not 0 <= value <= 1]

    if not 0 < p.calibrate.damping <= 1:
        problems.append(f"calibrate.damping: must lie above 0 and not above 1, got {p.calibrate.damping}")
    problems += _scheme_ranges(p.scheme, p.export.format)

    train = p.synthesize.sequences - p.synthesize.held_out
    prefix = p.synthesize.greedy_prefix
    if len(prefix) != 2 or not 0 <= prefix[0] <= prefix[-1] < p.synthesize.length:
        problems.append(f"synthesize.greedy_prefix: expected [fewest, most] below the length, got {prefix}")
    for name, wanted in (
        ("calibrate", p.calibrate.sequences),
        ("analyze", p.analyze.sequences),
        ("distill", p.distill.batch),
    ):
        if wanted > train:
            knob = f"{name}.{'batch' if name == 'distill' else 'sequences'}"
            problems.append(
                f"{knob}: asks for {wanted} sequences, but the corpus has {train} for training "
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
    for name, ce, kl in (("analyze", p.analyze.ce, p.analyze.kl), ("distill", p.distill.ce, p.distill.kl)):
        if not ce + kl > 0:
            problems.append(f"{name}.ce, {name}.kl: both are 0, which leaves no loss")
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
