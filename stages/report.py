"""report: one page that a person reads, and one file of numbers that dvc compares."""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import yaml

from pipeline.artifacts import contract
from pipeline.evaluation.items import Items
from pipeline.evaluation.provenance import READ
from pipeline.knobs import params, yaml_1_2
from pipeline.report import answers, notes, page, plots, signals, sweep_files, sweeps
from pipeline.report import summary as summaries
from stages import run

FOLDERS = ("teacher", "corpus", "calibration", "rtn", "signals", "inspected", "targets", "student")
OF_VARIANTS = ("int4", "scores", "items")
MADE = ("page", "sweeps_page", "sizes", "summary", "tasks")
LIBRARIES = (*contract.LIBRARIES, "datasets", "dvc", "pandas", "pyarrow")


def work() -> None:
    args = run.begin("report", *FOLDERS, *OF_VARIANTS, "sweeps", *MADE)
    knobs = params.load()
    scores = {v: json.loads((Path(args.scores) / f"{v}.json").read_text()) for v in summaries.VARIANTS}
    items = {v: Items.load(Path(args.items) / v) for v in summaries.VARIANTS}
    summary = summaries.summarize(scores, {variant: each.documents for variant, each in items.items()})
    facts = {
        "signals": contract.reading(args.signals, contract.SIGNALS),
        "student": contract.reading(args.student, contract.QUANTIZED),
        "calibration": contract.reading(args.calibration, contract.QUANTIZED),
    }
    facts["inspected"] = contract.reading(args.inspected, contract.SIGNALS)
    table, variants = _signals(args.signals, args.inspected, facts)
    log = pd.read_csv(Path(args.student) / "log.csv")
    tasks = summaries.task_names(scores)
    folders = {name: Path(getattr(args, name)) for name in FOLDERS}
    folders |= {f"int4/{v}": Path(args.int4) / v for v in ("rtn", "ptq", "student")}
    folders |= {f"scores/{v}": Path(args.scores) / f"{v}.json" for v in summaries.VARIANTS}
    read, changes = (
        scores["student"].get(READ, {}),
        answers.task_changes(items["teacher"].answers, items["student"].answers),
    )
    quantized_inputs = knobs.scheme.activations.bits > 0 or knobs.scheme.kv_cache.bits > 0
    manifest = contract.read_json(folders["teacher"] / contract.MANIFEST)
    found, left_out = sweeps.results(Path(args.sweeps), sweep_files.teacher_of(manifest))
    sized, elsewhere = sweeps.sizes(found, sweep_files.digest(read) if read else sweep_files.UNKNOWN)
    size_plot = plots.sizes([*_own_sizes(summary), *sized], summary["weight_bytes.teacher"])
    dtypes = _dtypes(args.environment.parent) if args.environment else {}
    title = _subtitle(knobs, folders["teacher"])
    e = knobs.evaluate
    content = page.render(
        title=knobs.report.title,
        subtitle=title,
        answers=answers.answers(
            summary, changes, knobs.export.format, quantized_inputs, (Path(args.int4) / "student").as_posix()
        ),
        scores=summaries.rows(summary, facts["calibration"]["method"]),
        gap_note=summaries.gap_note(summary),
        protocol=notes.protocol(
            e.windows,
            e.window,
            e.text,
            read.get("text", ""),
            dtypes.get("evaluate@student", e.dtype),
            knobs.synthesize.held_out,
        ),
        size_plot=size_plot,
        size_note=notes.sizes(len(sized), elsewhere),
        task_plot=plots.tasks(summary, tasks, summaries.VARIANTS),
        benchmark_note=notes.benchmark(e.source, e.benchmarks, e.limit),
        training_text=notes.training(log, facts["student"]),
        training_plot=plots.training(log),
        sweeps=[files.folder.name for files in found],
        signals=signals.section(folders["signals"], table, variants, facts["student"]["freeze"]),
        errors=notes.errors(pd.read_csv(folders["calibration"] / "errors.csv")),
        lineage=page.lineage(folders),
        params=yaml.safe_dump(yaml_1_2.parse(Path("params.yaml").read_text()), sort_keys=False),
        dtypes=dtypes,
        libraries={name: version(name) for name in LIBRARIES},
    )
    sweeps_content = page.render(
        page.TEMPLATES / "sweeps_page.html",
        title=f"Sweeps: {knobs.report.title}",
        subtitle=title,
        sweeps=sweeps.sections(found, Path()),
        left_out=left_out,
    )
    _write(args, content, sweeps_content, plots.alone(size_plot), summary, tasks)


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
    _write_usage(Path(args.page).with_name("usage.js"))


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


def _write_usage(file: Path) -> None:
    """What each stage's last run took, for the page to show."""
    stages = [{"stage": f.stem, **json.loads(f.read_text())} for f in sorted(run.USAGE.glob("*.json"), key=_order)]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    contract.write_text(file, "USAGE = " + json.dumps({"stages": stages, "machine": machine}) + ";\n")


def _order(file: Path) -> tuple[int, str]:
    order = [*params.load().__dataclass_fields__]
    name = file.stem.split("@")[0]
    return (order.index(name) if name in order else len(order)), file.stem


if __name__ == "__main__":
    run.main("report", work)
