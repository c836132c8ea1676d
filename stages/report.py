"""report: one page that a person reads, and one file of numbers that dvc compares."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline.artifacts import contract
from pipeline.evaluation.items import Items
from pipeline.evaluation.made import table as made_tasks
from pipeline.evaluation.provenance import READ
from pipeline.knobs import params, yaml_1_2
from pipeline.report import (
    answers,
    fidelity,
    kv_cache,
    laboratory,
    levels,
    margin,
    notes,
    page,
    plots,
    proofs,
    score_plots,
    signals,
    sweep_files,
    sweeps,
)
from pipeline.report import summary as summaries
from stages import run

FOLDERS = ("teacher", "corpus", "calibration", "rtn", "signals", "inspected", "targets", "student")
OF_VARIANTS = ("int4", "proof", "scores", "items")
MADE = ("page", "sweeps_page", "sizes", "summary", "tasks")
LIBRARIES = (*contract.LIBRARIES, "datasets", "dvc", "pandas", "pyarrow")


def work() -> None:
    args = run.begin("report", *FOLDERS, *OF_VARIANTS, "sweeps", *MADE)
    knobs = params.load()
    scores = {v: json.loads((Path(args.scores) / f"{v}.json").read_text()) for v in summaries.VARIANTS}
    items = {v: Items.load(Path(args.items) / v) for v in summaries.VARIANTS}
    answered = {v: of_variant.answers for v, of_variant in items.items()}
    proven = proofs.read(args.proof)
    summary = summaries.summarize(scores, {v: variant_items.documents for v, variant_items in items.items()})
    summary |= proofs.of_proofs(proven)
    facts = _facts(args)
    table, variants = _signals(args.signals, args.inspected, facts)
    log = pd.read_csv(Path(args.student) / "log.csv")
    tasks, folders = summaries.task_names(scores), _folders(args, knobs.export.formats)
    exported: dict[str, str] = {name: folders[f"int4/student/{name}"].as_posix() for name in knobs.export.formats}
    read = scores["student"].get(READ, {})
    manifest = contract.read_json(folders["teacher"] / contract.MANIFEST)
    teacher_sweeps, left_out = sweeps.results(Path(args.sweeps), sweep_files.teacher_of(manifest))
    sized, elsewhere = sweeps.sizes(teacher_sweeps, sweep_files.digest(read) if read else sweep_files.UNKNOWN)
    size_plot = score_plots.sizes([*_own_sizes(summary), *sized], summary["weight_bytes.teacher"])
    dtypes = _dtypes(args.environment.parent) if args.environment else {}
    subtitle = _subtitle(knobs, folders["teacher"])
    content = page.render(
        title=knobs.report.title,
        subtitle=subtitle,
        size_plot=size_plot,
        size_note=notes.sizes(len(sized), elsewhere),
        sweeps=[files.folder.name for files in teacher_sweeps],
        laboratory=laboratory.section(teacher_sweeps, table, knobs.report.margin),
        **_results(
            knobs,
            summary,
            answered,
            tasks,
            facts["calibration"]["method"],
            exported,
        ),
        **_protocol(knobs, read, dtypes),
        kv_cache=kv_cache.section(folders["teacher"], knobs.scheme.kv_cache),
        fidelity=fidelity.section(scores),
        margin=margin.section(answered, knobs.report.margin),
        levels=levels.section(answered, scores),
        proofs=proofs.rows(proven),
        proof_note=proofs.note(proven),
        **_training(folders, log, facts["student"], table, variants),
        **_origin(folders, dtypes),
    )
    sweeps_content = page.render(
        page.TEMPLATES / "sweeps_page.html",
        title=f"Sweeps: {knobs.report.title}",
        subtitle=subtitle,
        sweeps=sweeps.sections(teacher_sweeps, Path()),
        left_out=left_out,
    )
    _write(args, content, sweeps_content, plots.alone(size_plot), summary, tasks)


def _facts(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the manifests of the artifacts that the page tells of say; what does not fit its manifest is refused."""
    return {
        "signals": contract.reading(args.signals, contract.SIGNALS),
        "student": contract.reading(args.student, contract.QUANTIZED),
        "calibration": contract.reading(args.calibration, contract.QUANTIZED),
        "inspected": contract.reading(args.inspected, contract.SIGNALS),
    }


def _folders(args: argparse.Namespace, formats: Sequence[str]) -> dict[str, Path]:
    """Where each artifact lies, and the scores of each variant, by the names that the page gives them."""
    return {
        **{name: Path(getattr(args, name)) for name in FOLDERS},
        **{f"int4/{v}/{name}": Path(args.int4) / v / name for v in ("rtn", "ptq", "student") for name in formats},
        "proof": Path(args.proof),
        **{f"scores/{v}": Path(args.scores) / f"{v}.json" for v in summaries.VARIANTS},
    }


def _results(
    knobs: params.Params,
    summary: dict[str, float],
    answered: dict[str, pd.DataFrame],
    tasks: list[str],
    method: str,
    exported: dict[str, str],
) -> dict[str, Any]:
    """For the page's template: the four questions, and the scores of the variants.

    Args:
        answered: by variant, as `Items.answers`. method: by which the start of training was quantized.
        exported: the student's folders, by their formats.
    """
    quantized_inputs = knobs.scheme.activations.bits > 0 or knobs.scheme.kv_cache.bits > 0
    return {
        "answers": answers.answers(summary, answered, exported, quantized_inputs),
        "scores": summaries.rows(summary, method),
        "groups": summaries.group_rows(summary, method),
        "gap_note": summaries.gap_note(summary),
        "task_plot": score_plots.tasks(summary, tasks, summaries.VARIANTS) if tasks else "",
    }


def _protocol(knobs: params.Params, read: dict[str, str], dtypes: dict[str, str]) -> dict[str, Any]:
    """For the page's template: which text and items were scored. read: what the student's scores say of them."""
    e = knobs.evaluate
    dtype = dtypes.get("evaluate@student", e.dtype)
    made = sum(f"items.{name}" in read for name in made_tasks.MADE)
    return {
        "protocol": notes.protocol(e.windows, e.window, e.text, read.get("text", ""), dtype, knobs.synthesize.held_out),
        "benchmark_note": notes.benchmark(e.source, e.benchmarks, e.limit, made),
    }


def _training(
    folders: dict[str, Path], log: pd.DataFrame, student: dict[str, Any], table: pd.DataFrame, variants: list[str]
) -> dict[str, Any]:
    """For the page's template: the training, the signals of the variants, and the errors of the calibration."""
    return {
        "training_text": notes.training(log, student),
        "training_plot": plots.training(log),
        "signals": signals.section(folders["signals"], table, variants, student["freeze"]),
        "errors": notes.errors(pd.read_csv(folders["calibration"] / "errors.csv")),
    }


def _origin(folders: dict[str, Path], dtypes: dict[str, str]) -> dict[str, Any]:
    """For the page's template: artifacts, knobs, float types and libraries."""
    return {
        "lineage": page.lineage(folders),
        "params": yaml.safe_dump(yaml_1_2.parse(Path("params.yaml").read_text()), sort_keys=False),
        "dtypes": dtypes,
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _write(
    args: argparse.Namespace, content: str, sweeps_content: str, sizes: str, summary: dict[str, float], tasks: list[str]
) -> None:
    Path(args.page).parent.mkdir(parents=True, exist_ok=True)
    contract.write_text(Path(args.page), content)
    contract.write_text(Path(args.sweeps_page), sweeps_content)
    contract.write_text(Path(args.sizes), sizes)
    contract.write_json(Path(args.summary), summary)
    bars = pd.DataFrame(summaries.bars(summary, tasks), columns=["task", "accuracy"])
    contract.write_text(Path(args.tasks), bars.to_csv(index=False, lineterminator="\n"))
    exports = {f"{variant}-{name}" for variant, name in proofs.read(args.proof).exports}
    _write_usage(Path(args.page).with_name("usage.js"), exports)


def _subtitle(knobs: params.Params, teacher: Path) -> str:
    source = {"pypi": knobs.teacher.package, "hub": knobs.teacher.repo, "path": Path(knobs.teacher.path).name}
    kind = json.loads((teacher / "config.json").read_text())["architectures"][0]
    return f"{source[knobs.teacher.source]} ({kind}), {knobs.scheme}"


def _own_sizes(summary: dict[str, float]) -> list[sweeps.Size]:
    """The quantized variants, as the picture of sizes shows them."""
    quantized = [variant for variant in summaries.VARIANTS if f"kl.{variant}" in summary]
    return [(name, summary[f"weight_bytes.{name}"], summary[f"kl.{name}"]) for name in quantized]


def _dtypes(environments: Path) -> dict[str, str]:
    """What each stage computed in, as far as the stages wrote it down.

    The records are no dep of the report: what another dtype changes, it changes in what the stage made, which is one.
    """
    records = {file.stem: contract.read_json(file) for file in sorted(environments.glob("*.json"), key=_order)}
    return {stage: str(record["dtype"]) for stage, record in records.items() if record.get("dtype")}


def _signals(analyzed: str, inspected: str, facts: dict[str, dict]) -> tuple[pd.DataFrame, list[str]]:
    """The signals of analyze's variants and of those that only inspect has, and their names."""
    first, more = (pd.read_parquet(Path(folder) / "signals.parquet") for folder in (analyzed, inspected))
    known = facts["signals"]["variants"]
    added = [variant for variant in facts["inspected"]["variants"] if variant not in known]
    return pd.concat([first, more[more.variant.isin(added)]], ignore_index=True), [*known, *added]


def _write_usage(file: Path, proven: set[str]) -> None:
    """What each stage's last run took, and how fast exports ran, for the page to show.

    proven: each export that was, as variant-format.
    """
    stages = [{"stage": f.stem, **json.loads(f.read_text())} for f in sorted(run.USAGE.glob("*.json"), key=_order)]
    speeds = {f.stem: json.loads(f.read_text()) for f in sorted(run.SPEEDS.glob("*.json")) if f.stem in proven}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    contract.write_text(file, "USAGE = " + json.dumps({"stages": stages, "speeds": speeds, "machine": machine}) + ";\n")


def _order(file: Path) -> tuple[int, str]:
    order = [*params.load().__dataclass_fields__]
    name = file.stem.split("@")[0]
    return (order.index(name) if name in order else len(order)), file.stem


if __name__ == "__main__":
    run.main("report", work)
