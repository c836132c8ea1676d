"""The command line: `python -m pipeline.flow [targets]`, and `python -m pipeline.flow sweep FILE`.

A failure ends in one message, and a signal in an exit that leaves no process behind.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from prefect.client.orchestration import get_client

from pipeline.flow.processes import StageError
from pipeline.flow.repro import permafrost


def main() -> None:
    """Run what the command line names."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(without_traceback)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, leave)
    try:
        if sys.argv[1:2] == ["sweep"]:
            run_sweep(sys.argv[2:])
        else:
            run_repro(sys.argv[1:])
    except (StageError, ValueError) as error:
        sys.exit(f"flow: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def run_repro(arguments: list[str]) -> None:
    """`dvc repro`, under Prefect, for the targets that are named, or for all."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.flow",
        description="`dvc repro`, under Prefect",
        epilog="`python -m pipeline.flow sweep --help` for many experiments",
    )
    parser.add_argument("targets", nargs="*", help="stages or outputs, brought up to date with all they need (all)")
    targets = parser.parse_args(arguments).targets or None
    start_server()
    permafrost(targets)


def run_sweep(arguments: list[str]) -> None:
    """The experiments that a file describes, as far as they are not finished, then their table and curves."""
    from pipeline.flow import sweep  # what it imports takes seconds, and the flow above runs without it

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.flow sweep",
        description="many DVC experiments, each in a workspace of its own",
    )
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="what to sweep; sweeps/ablation.yaml is one")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="experiments that run at once (1)")
    parser.add_argument("--only-report", action="store_true", help="run nothing: tabulate what is finished")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs: must be at least 1, got {options.jobs}")
    with sweep.prepared(options.file) as plan:
        if options.only_report:
            sweep.tabulate(plan)
        else:
            start_server()
            sweep.run(plan, options.jobs)


def start_server() -> None:
    """Start Prefect's own server, unless PREFECT_API_URL names another, deaf to what a terminal sends.

    Ctrl-C reaches every process in the foreground, and the server must outlive it to record how the run ended. It
    inherits the signal mask; SIGTERM still ends it. Where that cuts off a transaction, SQLAlchemy logs a traceback over
    what the user is to read; so of the server's log only Prefect's and uvicorn's part is shown.
    """
    terminal = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
    signal.pthread_sigmask(signal.SIG_BLOCK, terminal)
    os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "CRITICAL")
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
