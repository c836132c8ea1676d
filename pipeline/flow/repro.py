"""The same run as `dvc repro`, under Prefect: a task a stage, live logs, retries for the network, clean cancellation.

What is up to date, and what depends on what, stays DVC's to know: the order comes from `dvc dag`, and a task is a
`dvc repro --single-item`. Nothing here is cached, and the rest of the project does not need this module.
"""

import json
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from pipeline.flow import processes
from pipeline.flow.processes import DVC, StageError

RETRIES = {"teacher": 2}  # the one stage that needs the network
HEADLINES = ("perplexity", "recovered", "accuracy", "bits_per_weight")
DETAILS = (".stderr", ".low", ".high", ".p")  # after a number's name: its error, interval, and p-value
TAIL = 4  # lines of output that a failure's message repeats


@flow(name="permafrost", persist_result=False)
def permafrost(
    targets: list[str] | None = None,
    summary: str = "data/report/summary.json",
    page: str = "data/report/index.html",
    share: bool = False,
) -> None:
    """Bring the targets (stages or outputs; all if None) and what they depend on up to date, then publish the scores.

    The scores are published as artifacts, from `summary` and `page`, if the stage `report` was among what ran.
    With `share`, what DVC's default remote has is taken from there, and what a stage makes goes there at once.

    Raises:
        StageError: DVC does not know a target, or a stage failed; the stages after it were not run.
    """
    stages = order(targets)
    for stage in stages:
        repro.with_options(name=stage, task_run_name=stage, retries=RETRIES.get(stage, 0))(stage, share)
        if share:
            push.with_options(task_run_name=f"push {stage}")(stage)
    if "report" in stages:
        publish(json.loads(Path(summary).read_text()), Path(page))


@task(cache_policy=NO_CACHE, persist_result=False)
def repro(stage: str, share: bool = False) -> None:
    """Run one stage, or take from the remote what it made elsewhere of the same inputs.

    Raises:
        StageError: the stage failed; the message holds its exit code and the last lines that it wrote.
    """
    dvc(f"stage {stage}", "repro", "--single-item", *(["--pull"] if share else []), stage)


@task(cache_policy=NO_CACHE, persist_result=False, retries=2)
def push(stage: str) -> None:
    """Store what a stage made, and what it was made of, where other hosts find it.

    Raises:
        StageError: there is no default remote, or it does not answer.
    """
    dvc(f"push of stage {stage}", "push", "--run-cache", stage)


def dvc(what: str, *arguments: str) -> None:
    """Run DVC with live logs, in a process group of its own, which is gone when this returns or raises."""
    logger = get_run_logger()
    processes.run(what, [*DVC, *arguments], lambda line: logger.info("%s", line), tail=TAIL)


def order(targets: list[str] | None) -> list[str]:
    """The stages that the targets need (all if None), each after those that it depends on.

    Raises:
        StageError: DVC cannot read the flow, or knows no such target.
    """
    needs: dict[str, set[str]] = {}
    for target in targets or [""]:
        command = [*DVC, "dag", "--dot", *([target] if target else [])]
        done = subprocess.run(command, capture_output=True, text=True, env=processes.environment(), check=False)
        if done.returncode:
            raise StageError(f"dvc dag: {done.stderr.strip()}")
        for before, after in sorted(re.findall(r'^"(.+?)"(?: -> "(.+?)")?;$', done.stdout, re.MULTILINE)):
            needs.setdefault(before, set())
            if after:
                needs.setdefault(after, set()).add(before)
    return list(TopologicalSorter(needs).static_order())


def publish(summary: dict[str, float], page: Path) -> None:
    """Create the artifacts `scores`, a table of every number, and `report`, the headlines and where the page is."""
    table = scores(summary)
    create_table_artifact(key="scores", table=table, description="Every score, with its standard error if it has one")
    rows = [list(row.values()) for row in table if row["metric"] in HEADLINES]
    lines = [f"| {' | '.join(row)} |" for row in [list(table[0]), ["---"] * len(table[0]), *rows]]
    text = "\n".join([*lines, "", f"The page: [{page}]({page.resolve().as_uri()})"])
    create_markdown_artifact(key="report", markdown=text)


def scores(summary: dict[str, float]) -> list[dict[str, str]]:
    """The flat summary, {metric}.{variant} with .stderr or .low and .high, as a row a metric and a column a variant."""
    values = {key: value for key, value in summary.items() if not key.endswith(DETAILS)}
    variants = list(dict.fromkeys(key.rpartition(".")[2] for key in values))
    rows: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        metric, _, variant = key.rpartition(".")
        row = rows.setdefault(metric, {"metric": metric, **dict.fromkeys(variants, "-")})
        error = summary.get(f"{key}.stderr")
        row[variant] = f"{value:.5g}" if error is None else f"{value:.5g} ± {error:.2g}"
        if f"{key}.low" in summary:
            row[variant] += f" ({summary[f'{key}.low']:.3g} to {summary[f'{key}.high']:.3g})"
    return list(rows.values())
