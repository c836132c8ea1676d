"""The card of an exported folder: the README.md that the Hugging Face hub shows, with its YAML header."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.knobs.names import look_up
from pipeline.publish.origin import TEACHER, Origin, Step
from pipeline.publish.runs import FORMATS

NAME = "README.md"
HASH = 12  # digits of a hash that stand in the text
METRICS = (  # score, how the card calls it, its digits, and what it is multiplied with
    ("perplexity", "perplexity", 2, 1),
    ("kl", "KL to the teacher, nats a token", 4, 1),
    ("top1", "top-1 agreement with the teacher, %", 1, 100),
    ("accuracy", "accuracy, %", 1, 100),
)
AGAINST_ITSELF = ("kl", "top1")
VARIANTS = {
    "rtn": "rounded to the nearest value of the grid",
    "ptq": "quantized by calibration",
    "student": "quantized by calibration, then distilled from the float model",
}


@dataclass(frozen=True)
class Told:
    """What the files do not say, and whoever publishes them does: an identifier of the hub for the licence, and the
    repository of the float model; empty where it is not told."""

    license: str = ""
    base_model: str = ""


@dataclass(frozen=True)
class Subject:
    """What a card is about: the repository's name, the export's facts, library versions, and what is behind it."""

    repo: str
    facts: Mapping[str, Any]
    libraries: Mapping[str, str]
    origin: Origin
    told: Told = Told()


def render(subject: Subject) -> str:
    """The card as Markdown.

    Raises:
        ValueError: the format has no card.
    """
    known = look_up("format of a card", subject.facts["format"], FORMATS)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    origin = subject.origin
    return environment.get_template("card.md").render(
        header=header(subject),
        repo=subject.repo,
        name=subject.repo.partition("/")[2],
        base=base_model(subject),
        license=subject.told.license,
        how=VARIANTS.get(origin.variant, "quantized"),
        scheme=str(origin.scheme) if origin.scheme else "",
        facts=subject.facts,
        scores=scores(origin),
        scored=origin.scored.rpartition("/")[2],
        parity=parity(origin.parity),
        runs=[(run, run.lines.format(repo=subject.repo)) for run in known.runs],
        limits=known.limits,
        in_float=listed({part: f"{100 * share:.2f}" for part, share in subject.facts.get("in_float", {}).items()}),
        teacher=origin.teacher,
        steps=origin.steps,
        knobs=knobs(origin.steps),
        listed=listed,
        short=lambda digest: digest[:HASH],
        libraries=subject.libraries,
        machines=machines(origin.steps),
        notes=origin.notes,
    )


def base_model(subject: Subject) -> str:
    """The hub's name of the float model; empty where it is not known."""
    return subject.told.base_model or subject.origin.teacher.get("repo", "")


def header(subject: Subject) -> str:
    """The YAML that the hub reads; what is not known is left out."""
    known = FORMATS[subject.facts["format"]]
    base = base_model(subject)
    return ModelCardData(
        license=subject.told.license or None,
        base_model=base or None,
        base_model_relation="quantized" if base else None,
        library_name=known.library,
        pipeline_tag="text-generation",
        tags=["quantized", "permafrost", *known.tags],
    ).to_yaml()


def scores(origin: Origin) -> list[list[str]]:
    """A table of the scores with their standard errors, a header first; empty where there are none."""
    if not origin.scores:
        return []
    rows = [["", "teacher", origin.variant]]
    for metric, name, digits, factor in METRICS:
        if metric not in origin.scores[TEACHER]:
            continue  # mean accuracy, where all tasks are answered in writing
        cells = [
            "" if variant == TEACHER and metric in AGAINST_ITSELF else _with_error(values, metric, digits, factor)
            for variant, values in ((variant, origin.scores[variant]) for variant in (TEACHER, origin.variant))
        ]
        rows.append([name, *cells])
    return rows


def _with_error(values: Mapping[str, Any], metric: str, digits: int, factor: float) -> str:
    return f"{factor * values[metric]:.{digits}f} ± {factor * values[f'{metric}.stderr']:.{digits}f}"


def parity(measured: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A table of what runtimes made of the file beside the model as trained, a header first; empty where none was
    looked at.

    Args:
        measured: of each runtime its top1_student, the share of tokens whose most likely next one is the same, and its
            kl_student, in nats a token, a lower bound where `bound` is 1.
    """
    if not measured:
        return []
    rows = [["runtime", "top-1 agreement with the model as trained, %", "KL to it, nats a token"]]
    for runtime, numbers in measured.items():
        at_least = "≥ " if numbers["bound"] else ""
        rows.append([runtime, f"{100 * numbers['top1_student']:.2f}", f"{at_least}{numbers['kl_student']:.2g}"])
    return rows


def knobs(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """The knobs of each stage, those that are empty left out; its own without its name before them."""
    lines = {}
    for step in steps:
        own = f"{step.stage.partition('@')[0]}."
        values = [(name.removeprefix(own), value) for name, value in step.knobs.items() if value not in ("", None)]
        lines[step.stage] = ", ".join(f"{name}={value}" for name, value in values)
    return [(stage, values) for stage, values in lines.items() if values]


def machines(steps: Sequence[Step]) -> list[str]:
    """What the stages ran on, each once, with the stages that did."""
    stages: dict[str, list[str]] = {}
    for step in steps:
        if step.machine:
            names = stages.setdefault(listed(step.machine), [])
            names += [] if step.stage in names else [step.stage]
    return [f"{', '.join(names)}: {machine}" for machine, names in stages.items()]


def listed(facts: Mapping[str, Any]) -> str:
    """Names with their values, in a line."""
    return ", ".join(f"{name} {_value(value)}" for name, value in facts.items())


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
