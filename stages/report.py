"""report: one page that a person reads, and one file of numbers that dvc compares."""

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
from pipeline.report import answers, page, plots, signals, sweep_files, sweeps
from pipeline.report import summary as summaries
from stages import run

LIBRARIES = (*contract.LIBRARIES, "datasets", "dvc", "pandas", "pyarrow")


def work() -> None:
    names = (
        "teacher",
        "corpus",
        "calibration",
        "rtn",
        "signals",
        "inspected",
        "targets",
        "student",
        "int4",
        "scores",
        "items",
        "sweeps",
        "page",
        "sweeps_page",
        "sizes",
        "summary",
        "tasks",
    )
    args = run.begin("report", *names)
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
    folders = {name: Path(getattr(args, name)) for name in names[:8]}
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
    content = page.render(
        title=knobs.report.title,
        subtitle=_subtitle(knobs, folders["teacher"]),
        answers=answers.answers(
            summary, changes, knobs.export.format, quantized_inputs, (Path(args.int4) / "student").as_posix()
        ),
        scores=summaries.rows(summary, facts["calibration"]["method"]),
        gap_note=summaries.gap_note(summary),
        protocol=_protocol(knobs, read.get("text", ""), dtypes.get("evaluate@student", knobs.evaluate.dtype)),
        size_plot=size_plot,
        size_note=_size_note(len(sized), elsewhere),
        task_plot=plots.tasks(summary, tasks, summaries.VARIANTS),
        benchmark_note=_benchmark_note(knobs),
        training_text=_training_text(log, facts["student"]),
        training_plot=plots.training(log),
        sweeps=[files.folder.name for files in found],
        signals=signals.section(folders["signals"], table, variants, facts["student"]["freeze"]),
        errors=_errors(folders["calibration"]),
        lineage=page.lineage(folders),
        params=yaml.safe_dump(yaml_1_2.parse(Path("params.yaml").read_text()), sort_keys=False),
        dtypes=dtypes,
        libraries={name: version(name) for name in LIBRARIES},
    )
    sweeps_content = page.render(
        page.TEMPLATES / "sweeps_page.html",
        title=f"Sweeps: {knobs.report.title}",
        subtitle=_subtitle(knobs, folders["teacher"]),
        sweeps=sweeps.sections(found, Path()),
        left_out=left_out,
    )
    Path(args.page).parent.mkdir(parents=True, exist_ok=True)
    contract.write_text(Path(args.page), content)
    contract.write_text(Path(args.sweeps_page), sweeps_content)
    contract.write_text(Path(args.sizes), plots.alone(size_plot))
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


def _size_note(shown: int, elsewhere: int) -> str:
    told = "The nearer to the corner below on the left, the better; weights, embedding and head are all counted."
    if not shown:
        told += " The sweep sweeps/sizes.yaml adds other formats of about these sizes."
    if elsewhere:
        told += (
            f" {elsewhere} points of sweeps are left out: their KL was measured on another text, or it is not known."
        )
    return told


def _dtypes(environments: Path) -> dict[str, str]:
    """What each stage computed in, as far as the stages wrote it down.

    The records are no dep of the report: what another dtype changes, it changes in what the stage made, which is one.
    """
    records = {file.stem: contract.read_json(file) for file in sorted(environments.glob("*.json"), key=_order)}
    return {stage: str(record["dtype"]) for stage, record in records.items() if record.get("dtype")}


def _protocol(knobs: params.Params, text_sha256: str, dtype: str) -> str:
    e = knobs.evaluate
    name = "CPython's pydoc_data.topics" if e.text == "pydoc" else e.text
    return (
        f"Perplexity: {e.windows} windows of {e.window} tokens from the start of {name} (sha256 "
        f"{text_sha256[:16]}), each alone, no BOS, {dtype}; its error is over windows. Gap won back: "
        f"share of RTN's loss in log-perplexity, in brackets its 95 % interval, from the windows in pairs. "
        f"KL (nats a token) and top-1 agreement are against the teacher on "
        f"{knobs.synthesize.held_out} held-out sequences of its own. Accuracy: zero-shot mean over the tasks below."
    )


def _benchmark_note(knobs: params.Params) -> str:
    e = knobs.evaluate
    where = "the data sets of lm-eval's own tasks" if e.source == "hub" else f"the JSON lines files in {e.benchmarks}"
    limit = f", at most {e.limit} items a task" if e.limit else ""
    return f"lm-eval {version('lm-eval')}, zero-shot, {where}{limit}. Bars are one standard error each way."


def _training_text(log: pd.DataFrame, facts: dict) -> str:
    return (
        f"{len(log)} steps over {int(log['tokens'].iloc[-1]):,} predicted tokens, freeze policy {facts['freeze']} "
        f"({len(facts['frozen'])} linears keep their calibrated codes), {facts['scale']} scales. KL fell from "
        f"{log['kl'].head(5).mean():.3f} (mean of the first 5 steps) to {log['kl'].tail(5).mean():.3f} (of the last 5)."
    )


def _signals(analyzed: str, inspected: str, facts: dict[str, dict]) -> tuple[pd.DataFrame, list[str]]:
    """The signals of analyze's variants and of those that only inspect has, and their names."""
    first, more = (pd.read_parquet(Path(folder) / "signals.parquet") for folder in (analyzed, inspected))
    known = facts["signals"]["variants"]
    added = [variant for variant in facts["inspected"]["variants"] if variant not in known]
    return pd.concat([first, more[more.variant.isin(added)]], ignore_index=True), [*known, *added]


def _errors(folder: Path) -> list[list[str]]:
    errors = pd.read_csv(folder / "errors.csv")
    columns = {
        "output_sqnr": "output",
        "rtn_output_sqnr": "output, RTN",
        "weight_sqnr": "weight",
        "rtn_weight_sqnr": "weight, RTN",
    }
    means = errors.groupby("role", sort=False)[list(columns)].mean()
    return [
        ["role", *columns.values()],
        *([str(role), *(f"{x:.1f}" for x in row)] for role, row in zip(means.index, means.to_numpy(), strict=True)),
    ]


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
