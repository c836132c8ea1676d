"""The same run as `dvc repro`, under Prefect: a task a stage, live logs, retries for the network, clean cancellation.

What is up to date, and what depends on what, stays DVC's to know: the order comes from `dvc dag`, and a task is a
`dvc repro --single-item`. Nothing here is cached, and the rest of the project does not need this module.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import NoReturn

# Prefect reads its settings when it is imported; whatever the caller has set wins.
os.environ.setdefault("PREFECT_HOME", str(Path("runs/prefect").absolute()))
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
os.environ.setdefault("PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS", "10")
os.environ.setdefault("DO_NOT_TRACK", "1")
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402

RETRIES = {"teacher": 2}  # the one stage that needs the network
HEADLINES = ("perplexity", "recovered", "accuracy", "bits_per_weight")
DVC = [sys.executable, "-m", "dvc"]
TAIL = 4  # lines of output that a failure's message repeats
POLL = 0.1  # seconds
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


class StageError(RuntimeError):
    """DVC could not run a stage, or not find it; the message is for the user."""


@flow(name="permafrost", persist_result=False)
def permafrost(
    targets: list[str] | None = None,
    summary: str = "data/report/summary.json",
    page: str = "data/report/index.html",
) -> None:
    """Bring the targets (stages or outputs; all if None) and what they depend on up to date, then publish the scores.

    The scores are published as artifacts, from `summary` and `page`, if the stage `report` was among what ran.

    Raises:
        StageError: DVC does not know a target, or a stage failed; the stages after it were not run.
    """
    stages = order(targets)
    for stage in stages:
        repro.with_options(name=stage, task_run_name=stage, retries=RETRIES.get(stage, 0))(stage)
    if "report" in stages:
        publish(json.loads(Path(summary).read_text()), Path(page))


@task(cache_policy=NO_CACHE, persist_result=False)
def repro(stage: str) -> None:
    """Run one stage in a process group of its own, which is gone when this returns or raises.

    Raises:
        StageError: the stage failed; the message holds its exit code and the last lines that it wrote.
    """
    logger = get_run_logger()
    tail: deque[str] = deque(maxlen=TAIL)
    process = subprocess.Popen(
        [*DVC, "repro", "--single-item", stage],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment(),
        start_new_session=True,
    )
    try:
        for line in output(process):
            logger.info("%s", line)
            tail.append(line)
    finally:
        stop(process)
    if process.returncode:
        raise StageError("\n  ".join([f"stage {stage} failed with exit code {process.returncode}:", *tail]))


def order(targets: list[str] | None) -> list[str]:
    """The stages that the targets need (all if None), each after those that it depends on.

    Raises:
        StageError: DVC cannot read the flow, or knows no such target.
    """
    needs: dict[str, set[str]] = {}
    for target in targets or [""]:
        command = [*DVC, "dag", "--dot", *([target] if target else [])]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        if done.returncode:
            raise StageError(f"dvc dag: {done.stderr.strip()}")
        for before, after in sorted(re.findall(r'^"(.+?)"(?: -> "(.+?)")?;$', done.stdout, re.MULTILINE)):
            needs.setdefault(before, set())
            if after:
                needs.setdefault(after, set()).add(before)
    return list(TopologicalSorter(needs).static_order())


def environment() -> dict[str, str]:
    """This process's environment, with `python` the interpreter that runs this, and output that is not held back."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([here, os.environ.get("PATH", "")]), "PYTHONUNBUFFERED": "1"}


def output(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines that a process writes, until it ends; each state of a progress bar is one, and empty ones are left out.

    A thread reads, so that an exception can arrive here at any time.
    """
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in process.stdout or ():
            if line.strip():
                lines.put(line.rstrip())

    reader = Thread(target=read, daemon=True)
    reader.start()
    while process.poll() is None or not lines.empty():
        with suppress(Empty):
            yield lines.get(timeout=POLL)
    reader.join(timeout=1.0)  # for what was still in the pipe; whatever else holds the pipe open is not waited for
    while not lines.empty():
        yield lines.get()


def stop(process: subprocess.Popen[str]) -> None:
    """End what is left of a process's group: SIGTERM, and SIGKILL for what is still there after the grace period."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline:
                process.poll()  # an ended leader counts as there until it is asked for
                os.killpg(process.pid, 0)
                time.sleep(POLL)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def publish(summary: dict[str, float], page: Path) -> None:
    """Create the artifacts `scores`, a table of every number, and `report`, the headlines and where the page is."""
    table = scores(summary)
    create_table_artifact(key="scores", table=table, description="Every score, with its standard error if it has one")
    rows = [list(row.values()) for row in table if row["metric"] in HEADLINES]
    lines = [f"| {' | '.join(row)} |" for row in [list(table[0]), ["---"] * len(table[0]), *rows]]
    text = "\n".join([*lines, "", f"The page: [{page}]({page.resolve().as_uri()})"])
    create_markdown_artifact(key="report", markdown=text)


def scores(summary: dict[str, float]) -> list[dict[str, str]]:
    """The flat summary, {metric}.{variant} with {metric}.{variant}.stderr, as a row a metric and a column a variant."""
    values = {key: value for key, value in summary.items() if not key.endswith(".stderr")}
    variants = list(dict.fromkeys(key.rpartition(".")[2] for key in values))
    rows: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        metric, _, variant = key.rpartition(".")
        row = rows.setdefault(metric, {"metric": metric, **dict.fromkeys(variants, "-")})
        error = summary.get(f"{key}.stderr")
        row[variant] = f"{value:.5g}" if error is None else f"{value:.5g} ± {error:.2g}"
    return list(rows.values())


def main() -> None:
    """Run the flow for the targets that the command line names, or for all; a failure ends in one message."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.flow", description="`dvc repro`, under Prefect")
    parser.add_argument("targets", nargs="*", help="stages or outputs, brought up to date with all they need (all)")
    targets = parser.parse_args().targets or None
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(without_traceback)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, leave)
    try:
        start_server()
        permafrost(targets)
    except StageError as error:
        sys.exit(f"flow: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def start_server() -> None:
    """Start Prefect's own server, unless PREFECT_API_URL names another, deaf to what a terminal sends.

    Ctrl-C reaches every process in the foreground, and the server must outlive it to record how the run ended. It
    inherits the signal mask; SIGTERM still ends it.
    """
    terminal = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
    signal.pthread_sigmask(signal.SIG_BLOCK, terminal)
    get_client(sync_client=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, terminal)


def without_traceback(record: logging.LogRecord) -> bool:
    """A logging filter: for a StageError the message says it all."""
    if record.exc_info and isinstance(record.exc_info[1], StageError):
        record.exc_info = None
    return True


def leave(number: int, _: object) -> NoReturn:
    """Turn a signal into an exit that unwinds, so that the stage and Prefect's own server are stopped on the way."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
