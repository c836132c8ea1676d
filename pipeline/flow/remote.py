"""`dvc pull` and `dvc push`, which ask the remote first: `python -m pipeline.flow.remote pull`.

DVC 3.67 tries for 40 s to reach an S3 endpoint that is down, and a pull that misses one object ends in a complaint
about a temporary file and lays nothing into the tree. Here either is one line, and what can be had is brought.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dvc.exceptions import NotDvcRepoError
from dvc.repo import Repo
from dvc_data.hashfile.transfer import transfer
from dvc_data.hashfile.tree import Tree

from pipeline.flow import processes

ASK = ["data", "status", "--not-in-remote", "--granular", "--json"]
ATTEMPTS = {"AWS_MAX_ATTEMPTS": "2"}  # while asking; botocore's five take half a minute
SHOWN = 3  # files that a message names


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.flow.remote", description="share outputs with the team")
    parser.add_argument("verb", choices=("pull", "push"))
    parser.add_argument("--jobs", type=int, metavar="N", help="transfers at once (DVC's default)")
    options = parser.parse_args()
    jobs = [] if options.jobs is None else ["--jobs", str(options.jobs)]
    try:
        (pull if options.verb == "pull" else push)(jobs)
    except (processes.StageError, NotDvcRepoError) as error:
        sys.exit(f"remote: {error}")


def pull(options: list[str]) -> None:
    """Bring every output that dvc.lock names and that is whole in the remote.

    Raises:
        StageError: the remote cannot be asked, and nothing was changed; or it lacks files, and the rest was brought.
    """
    name, state = ask()
    lost = unobtainable(state)
    outputs = tracked()
    whole = [output for output in outputs if not any(within(file, output) for file in lost)]
    if whole:
        dvc("pull", *options, *(whole if lost else []))
    if lost:
        raise processes.StageError(
            f"{name} lacks {named(lost)}, not in this cache either; all else is here. "
            "`dvc repro` makes it anew, or who has it pushes it again"
        )


def push(options: list[str]) -> None:
    """Give the remote what dvc.lock names and this cache has.

    Raises:
        StageError: the remote cannot be asked, and nothing was changed; or files are nowhere, and the rest was given.
    """
    name, state = ask()
    dvc("push", *options)
    if {*state.get("not_in_remote", [])} - {*state.get("not_in_cache", [])}:
        mend()
    if lost := unobtainable(state):
        raise processes.StageError(f"{named(lost)} is neither in this cache nor in {name}; `dvc repro` makes it anew")


def ask() -> tuple[str, dict[str, Any]]:
    """The remote's name, with its address, and what DVC says of each output here and there."""
    with Repo() as repo:
        remote = repo.config["core"].get("remote")
        if not remote:
            raise processes.StageError("no remote is set; `dvc remote add -d NAME s3://BUCKET/FOLDER` sets one")
        name = f"{remote} ({repo.config['remote'].get(remote, {}).get('url', 'no address')})"
    done = subprocess.run(
        [*processes.DVC, *ASK],
        env={**ATTEMPTS, **processes.environment()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (errors or ["DVC does not say why"])[0].removeprefix("unexpected error - ")
        raise processes.StageError(f"{name} cannot be asked, and nothing was changed: {reason}")
    return name, json.loads(done.stdout)


def mend() -> None:
    """Give the remote what it lacks of folders that it has in part.

    DVC's push takes a folder to be whole where its listing is there.
    """
    with Repo() as repo:
        cache, remote = repo.cache.local, repo.cloud.get_remote_odb()
        wanted = set()
        for output in (output for output in repo.index.outs if output.use_cache):
            content = output.get_obj()
            if isinstance(content, Tree):
                wanted |= {hash_info for _, _, hash_info in content if cache.exists(hash_info.value)}
        failed = transfer(cache, remote, wanted).failed
    if failed:
        raise processes.StageError(f"{len(failed)} files could not be given to the remote; push again")


def unobtainable(state: dict[str, Any]) -> list[str]:
    """Files that neither the cache nor the remote has."""
    return sorted({*state.get("not_in_cache", [])} & {*state.get("not_in_remote", [])})


def tracked() -> list[str]:
    """The outputs that DVC caches, as paths from here."""
    with Repo() as repo:
        return sorted({os.path.relpath(out.fs_path) for out in repo.index.outs if out.use_cache})


def within(file: str, output: str) -> bool:
    """Whether a path is an output or lies in it."""
    return Path(file).is_relative_to(output)


def named(files: Iterable[str]) -> str:
    """The first few of some files, and how many there are besides."""
    first, rest = [*files][:SHOWN], [*files][SHOWN:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


def dvc(*arguments: str) -> None:
    """Run DVC, with its own progress and messages."""
    done = subprocess.run([*processes.DVC, *arguments], env=processes.environment(), check=False)
    if done.returncode:
        raise processes.StageError(f"dvc {arguments[0]} failed with exit code {done.returncode}, see above")


if __name__ == "__main__":
    main()
