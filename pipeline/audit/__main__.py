"""`python -m pipeline.audit`: versions compared, numbers traced, artifacts verified."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.artifacts import contract, progress
from pipeline.audit import compare, page, results, table, trace, verify, versions
from pipeline.audit.cache import Cache
from pipeline.audit.results import teacher
from pipeline.audit.trees import Git
from pipeline.audit.versions import HERE, Version
from pipeline.knobs.names import unknown
from pipeline.report import sweeps

METRIC = "perplexity.student"
SWEEPS = "sweeps"  # the folder of their definitions and results


def main() -> None:
    """Run what the command line asks for. A ValueError is the user's, and shown as one line."""
    arguments = sys.argv[1:]
    commands = {"trace": _trace, "verify": _verify}
    try:
        with _project() as repo, Git(Path(repo.root_dir)) as git:
            cache = Cache(Path(repo.cache.local.path))
            command = commands.get(arguments[0]) if arguments else None
            status = command(arguments[1:], git, cache) if command else _audit(arguments, git, cache)
    except ValueError as error:
        sys.exit(f"audit: {error}")
    sys.exit(status)


def _project() -> Repo:
    """Raises: ValueError: this is no DVC project."""
    try:
        return Repo()
    except DvcException as error:
        raise ValueError(f"{error}; run this in the project's own folder") from None


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """What to audit, and where the page goes."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.audit",
        description="Versions compared: what changed, and what the differences show.",
        epilog="`… trace METRIC` tells where a number comes from, `… verify` takes all hashes anew.",
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"commits, tags, branches, experiments, {HERE}")
    parser.add_argument(
        "--baseline", metavar="VERSION", help="set all against this one, not each against the one before"
    )
    parser.add_argument("--commits", type=int, default=10, metavar="N", help="how many, if none is named (10)")
    parser.add_argument("--metric", default=METRIC, help=f"whose lineage the page shows ({METRIC})")
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="folder of index.html and audit.csv")
    return parser.parse_args(arguments)


def _audit(arguments: Sequence[str], git: Git, cache: Cache) -> int:
    args = _options(arguments)
    names, problems = args.versions or versions.default(git, args.commits), list[str]()
    loaded_versions = _load(git, names, cache, problems if args.versions else None)
    baseline = _load(git, [args.baseline] if args.baseline else [], cache, problems)
    drawn, left_out = list[dict[str, Any]](), list[str]()
    try:
        of_model, left_out = sweeps.results(git.root / SWEEPS, teacher(git.root))
        drawn = sweeps.sections(of_model, git.root, curves=False)  # the report draws those
    except ValueError as error:
        problems.append(str(error))
    if loaded_versions and args.metric not in (METRIC, *loaded_versions[-1].metrics):
        problems.append(f"{loaded_versions[-1].name}: {unknown('metric', args.metric, loaded_versions[-1].metrics)}")
    if problems or not loaded_versions:
        raise ValueError("\n  ".join(problems) or "there is no version to look at")
    before: list[Version | None]
    if baseline:
        before = [*baseline] * len(loaded_versions)
    elif args.versions:
        before = [None, *loaded_versions[:-1]]
    else:
        before = versions.predecessors(git, loaded_versions, cache)
    with progress.bar("audit", len(loaded_versions), " version") as bar:
        entries = compare.audit(loaded_versions, before, cache, bar.update)
    args.out.mkdir(parents=True, exist_ok=True)
    contract.write_text(args.out / "index.html", page.render(entries, args.metric, cache, drawn, left_out))
    contract.write_text(args.out / "audit.csv", table.tidy(entries).to_csv(index=False, lineterminator="\n"))
    print(table.text(table.overview(entries), shutil.get_terminal_size().columns))
    if len(turned := table.flips(entries)) > 1:
        print(f"\nanswers of the {table.STUDENT} that changed from the version before:")
        print(f"{table.aligned(turned)}\n")
    print(f"the page: {args.out / 'index.html'}; every number: {args.out / 'audit.csv'}")
    return 0


def _load(git: Git, names: Sequence[str], cache: Cache, problems: list[str] | None) -> list[Version]:
    """The versions of some names, each once; why one cannot be read is added to the problems, or is a warning, where
    the user did not name it."""
    loaded_versions = []
    for name in dict.fromkeys(names):
        try:
            loaded_versions.append(versions.load(git, name, cache))
        except ValueError as error:
            if problems is None:
                print(f"audit: left out {error}", file=sys.stderr)
            else:
                problems.append(str(error))
    return loaded_versions


def _trace(arguments: Sequence[str], git: Git, cache: Cache) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.audit trace", description="Where a number comes from.")
    parser.add_argument("metric", help=f"as the report's summary names it, {METRIC} say")
    parser.add_argument("--version", default=HERE, help=f"commit, tag, branch or experiment ({HERE})")
    args = parser.parse_args(arguments)
    print("\n".join(trace.lines(versions.load(git, args.version, cache), args.metric, cache)))
    return 0


def _verify(arguments: Sequence[str], git: Git, cache: Cache) -> int:
    argparse.ArgumentParser(
        prog="python -m pipeline.audit verify",
        description="Take all hashes anew and work all numbers out again; what is not as it was made is named.",
    ).parse_args(arguments)
    here = versions.load(git, HERE, cache)
    count = sum(len(stage.outs) for stage in here.lock.stages.values())
    with progress.bar("verify", count, " output") as bar:
        findings = verify.verify(git, here, cache, lambda _: bar.update())
    of_sweeps, unknown = results.verify(git, git.root / SWEEPS, cache)
    wrong = [finding for finding in (*findings, *of_sweeps) if finding.checked]
    unchecked = [f"{finding.what}: {finding.problem}" for finding in findings if not finding.checked] + unknown
    for finding in wrong:
        print(f"{finding.what}: {finding.problem}")
    for line in unchecked:
        print(f"not checked: {line}")
    outcome = f"{len(wrong)} findings" if wrong else "all as they were made"
    outcome += f", {len(unchecked)} not checked" if unchecked else ""
    print(f"{count} outputs of {len(here.lock.stages)} stages: {outcome}")
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
