"""A sweep under Prefect: the stages that points share, once each; the points, several at once; the table.

Each point is a DVC experiment in a workspace of its own. What is finished is not run again, one failure does not stop
the others, and what a signal stops goes on where it was when the sweep is started again.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.flow import definition, knobs, plan, processes, results, workspaces
from pipeline.flow.processes import DVC, StageError
from pipeline.flow.results import UNKNOWN, Result
from pipeline.flow.workspaces import Workspaces

SHARED_BY = "PERMAFROST_JOBS"  # among how many the cores are divided, for a stage that starts processes of its own
TAIL = 6  # lines of output that a failure's message repeats


@dataclass
class Progress:
    """How far a sweep is, and how many of its points run at once."""

    sweep: definition.Sweep
    runs: list[plan.Run]
    workspaces: Workspaces
    finished: dict[str, Result]
    jobs: int = 1
    failed: dict[str, str] = field(default_factory=dict)

    def pending(self) -> list[plan.Run]:
        """The runs that are neither finished nor failed; all settings with the lowest seed come first, so that a sweep
        that is cut short compares them all."""
        left = [run for run in self.runs if run.name not in self.finished and run.name not in self.failed]
        return sorted(left, key=lambda run: run.point.seed)

    def write(self) -> list[list[str]]:
        """Write the results as far as there are any; gives the rows of the table."""
        return results.write(self.sweep, self.runs, self.finished) if self.finished else []


@contextmanager
def prepared(file: Path) -> Iterator[Progress]:
    """A sweep, checked as a whole, with what is finished of it; no other process can run it meanwhile.

    Raises:
        ValueError: the definition is wrong, or the project's tree is not what its points would run.
    """
    sweep = definition.load(file)
    with workspaces.opened(sweep.name) as desk:
        try:
            checkout = desk.make("plan")
            _check_head(sweep, desk, checkout)
            runs = plan.runs(sweep, checkout)
        finally:
            desk.leave("plan", done=True)
        yield Progress(sweep, runs, desk, _finished(sweep, runs, desk))


def tabulate(progress: Progress) -> None:
    """Write the results of what is finished.

    Raises:
        ValueError: nothing is.
    """
    if not progress.write():
        raise ValueError(
            f"no point of {progress.sweep.file} is finished for HEAD's code and knobs; nothing was written"
        )
    print((progress.sweep.folder / "table.md").read_text(encoding="utf-8"))


def run(progress: Progress, jobs: int) -> None:
    """Run what is not finished, `jobs` points at once, and write and publish the results.

    Points that run at once divide the processor's cores among them, unless OMP_NUM_THREADS says how many each has.

    Raises:
        StageError: points failed; the message names them, with the last lines of their output.
    """
    name = f"sweep-{progress.sweep.name}"
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=jobs)
    progress.jobs = max(1, min(jobs, len(progress.pending())))

    @flow(name="sweep", flow_run_name=name, task_runner=runner, persist_result=False)
    def sweep() -> None:  # closes over what Prefect need not record as its parameters
        _run(progress, jobs)

    sweep()


def _run(progress: Progress, jobs: int) -> None:
    logger = get_run_logger()
    desk, pending, cancelled = progress.workspaces, progress.pending(), Event()
    total = len(progress.runs)
    logger.info("%d of %d points are finished, %d to run, %d at once", total - len(pending), total, len(pending), jobs)
    progress.write()
    try:
        groups = plan.shared(pending)
        desk.keep_only([*(run.name for run in pending), *(group.name for group in groups)])
        for group in groups:
            _share(progress, group, cancelled)
        _run_points(progress, cancelled)
    finally:
        cancelled.set()  # what still runs is ended, and what waits does not start
    table = progress.write()
    if table:
        logger.info("results: %s; `make audit` draws them", progress.sweep.folder / "table.md")
        header, *body = table
        create_table_artifact(
            key=f"sweep-{progress.sweep.name}", table=[dict(zip(header, row, strict=True)) for row in body]
        )
    if progress.failed:
        head = f"{len(progress.failed)} of {total} points failed; started again, only these run:"
        raise StageError("\n".join([head, *progress.failed.values()]))


def _share(progress: Progress, group: plan.Shared, cancelled: Event) -> None:
    """Bring a group's shared stages up to date; where they fail, so do its points."""
    logger = get_run_logger()
    logger.info("%s, for %d points: %s", group.name, len(group.runs), ", ".join(group.stages))
    task_run = shared_stages.with_options(task_run_name=group.name)
    state = task_run(progress.workspaces, group, cancelled, return_state=True)
    if not state.is_completed():
        message = str(state.result(raise_on_failure=False))
        progress.failed |= {run.name: f"{run.name} was not run, see {group.name}" for run in group.runs}
        progress.failed[group.runs[0].name] = f"{group.runs[0].name} was not run: {message}"


def _run_points(progress: Progress, cancelled: Event) -> None:
    """Run the pending points, and write the results after each."""
    logger = get_run_logger()
    pending, started = progress.pending(), time.monotonic()
    futures = {}
    for run in pending:
        task_run = point.with_options(task_run_name=run.name)
        futures[task_run.submit(progress.workspaces, run, progress.sweep.target, cancelled, progress.jobs)] = run
    for done, future in enumerate(as_completed([*futures]), 1):
        run = futures[future]
        outcome = future.result(raise_on_failure=False)
        try:
            if isinstance(outcome, BaseException):
                raise StageError(str(outcome))
            progress.finished[run.name] = results.read(progress.workspaces.root, outcome, progress.sweep)
            progress.write()
        except (StageError, ValueError, FileNotFoundError) as error:
            message = str(error)
            progress.failed[run.name] = message if message.startswith(run.name) else f"{run.name}: {message}"
        left = (time.monotonic() - started) / done * (len(pending) - done)
        logger.info(
            "%s %s: point %d of %d%s",
            run.name,
            "failed" if run.name in progress.failed else "is finished",
            done,
            len(pending),
            f", about {_duration(left)} left" if done < len(pending) else "",
        )


@task(cache_policy=NO_CACHE, persist_result=False)
def shared_stages(desk: Workspaces, group: plan.Shared, cancelled: Event) -> None:
    """Run stages for several points; DVC's run cache then has them.

    Raises:
        StageError: a stage failed.
    """
    with _workspace(desk, group.name, group.overrides, cancelled) as where:
        _dvc(group.name, ["repro", *group.stages], where, cancelled)


@task(cache_policy=NO_CACHE, persist_result=False)
def point(desk: Workspaces, run: plan.Run, target: str, cancelled: Event, jobs: int = 1) -> str:
    """Run a point as a DVC experiment, and take it into the project; gives its commit.

    Raises:
        StageError: a stage failed.
    """
    with _workspace(desk, run.name, run.point.overrides, cancelled) as where:
        _dvc(run.name, ["exp", "run", "--name", run.name, *target.split()], where, cancelled, jobs)
        desk.collect(run.name)
    return desk.experiments()[run.name]


@contextmanager
def _workspace(desk: Workspaces, name: str, overrides: Mapping[str, Any], cancelled: Event) -> Iterator[Path]:
    """A workspace with some knobs changed, which is gone afterwards, all but the checkpoints of what is not done."""
    if cancelled.is_set():
        raise StageError(f"{name} was not started")
    done = False
    try:
        where = desk.make(name)
        knobs.write(where / "params.yaml", dict(overrides))
        yield where
        done = True
    finally:
        desk.leave(name, done)


def _dvc(what: str, arguments: list[str], where: Path, cancelled: Event, jobs: int = 1) -> None:
    """Run DVC in a workspace, whose own code comes first; in CI its output is not shown."""
    logger = get_run_logger()
    say = logger.debug if os.environ.get("CI") else logger.info
    env = processes.environment()
    if jobs > 1 and "OMP_NUM_THREADS" not in env:
        env |= {"OMP_NUM_THREADS": str(max(1, processes.cores() // jobs)), SHARED_BY: str(jobs)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(where), env.get("PYTHONPATH", "")]))
    processes.run(
        what, [*DVC, *arguments], lambda line: say("%s", line), tail=TAIL, cwd=where, env=env, cancelled=cancelled
    )


def _check_head(sweep: definition.Sweep, desk: Workspaces, checkout: Path) -> None:
    """Refuse a tree that is not what the points would run, and knobs that are sound here but not in a clone of HEAD."""
    if differing := workspaces.differs(desk.root, plan.sources(checkout, sweep.target)):
        listed = "\n  ".join(differing)
        raise ValueError(
            f"the points run what HEAD holds, and these files of theirs differ from it; commit them:\n  {listed}"
        )
    with chdir(checkout):
        file = Path("params.yaml")
        points = {f"{point.label()} seed={point.seed}": point.overrides for point in sweep.points}
        if refused := knobs.refused(file, knobs.read(file), points):
            raise ValueError("\n  ".join(["in a clone of HEAD, where the points run, there are bad knobs:", *refused]))


def _finished(sweep: definition.Sweep, runs: list[plan.Run], desk: Workspaces) -> dict[str, Result]:
    """The results that the sweep's files hold, and those of experiments that are still in the cache."""
    known, experiments = results.recorded(sweep), desk.experiments()
    finished = {run.name: known[run.name] for run in runs if run.name in known}
    for run in runs:
        if run.name in experiments and (run.name not in finished or finished[run.name].origin.commit == UNKNOWN):
            try:
                finished[run.name] = results.read(desk.root, experiments[run.name], sweep)
            except FileNotFoundError:  # `dvc gc` took it
                continue
    return finished


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{hours:g} h"
