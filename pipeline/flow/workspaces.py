"""A workspace a point: a clone of the project at one commit, in which `dvc exp run` has the whole tree to itself.

`dvc exp run --temp` is not used. At each start it stashes, detaches and resets the tree of the user, who may be at work
there, and whose changes stay in the stash if it is killed; experiments that start at the same time share one queue and
may take each other's; a stage that was killed loses its checkpoints with the folder. A clone has none of that. It
shares the project's DVC cache by links, run cache included, and gives its experiment back to the project as a ref.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from dvc.config import Config
from dvc.repo import Repo

from pipeline.flow import processes

FOLDER = Path("runs/sweeps")
SCRATCH = Path("runs/scratch")  # where a stage keeps its checkpoints, see pipeline/artifacts/progress.py
# Outputs are only read in a workspace, and DVC removes them before a stage makes them anew, so they may be links.
LINKS = "reflink,hardlink,copy"
QUIET_GIT = ("-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "advice.detachedHead=false")


@dataclass(frozen=True)
class Workspaces:
    """The workspaces of one sweep.

    Attributes:
        root: the project. folder: where the workspaces lie. commit: what they hold.
    """

    root: Path
    folder: Path
    commit: str
    cache: str
    _git: Lock = field(default_factory=Lock)

    def make(self, name: str) -> Path:
        """A fresh workspace, with the checkpoints of an earlier one of this name."""
        where, kept = self.folder / name, self.folder / f".{name}.scratch"
        if (where / SCRATCH).is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            (where / SCRATCH).rename(kept)
        shutil.rmtree(where, ignore_errors=True)
        git(self.root, *QUIET_GIT, "clone", "--quiet", "--no-tags", "--no-checkout", str(self.root), str(where))
        git(where, *QUIET_GIT, "checkout", "--quiet", "--detach", self.commit)
        for key, fallback in (("user.name", "sweep"), ("user.email", "sweep@localhost")):
            setting = git(self.root, "config", "--get", "--default", fallback, key).strip()
            git(where, "config", key, setting)
        self._configure(where)
        if kept.is_dir():
            (where / SCRATCH).parent.mkdir(parents=True, exist_ok=True)
            kept.rename(where / SCRATCH)
        return where

    def _configure(self, where: Path) -> None:
        """The project's own local configuration, with its cache, and nothing kept outside the workspace."""
        local = self.root / ".dvc/config.local"
        if local.is_file():
            shutil.copy(local, where / ".dvc/config.local")
        with Config(str(where / ".dvc")).edit("local") as settings:
            settings.setdefault("cache", {}).update({"dir": self.cache, "type": LINKS})
            settings.setdefault("core", {})["site_cache_dir"] = str(where / ".dvc/tmp/site")

    def leave(self, name: str, done: bool) -> None:
        """Remove a workspace; where its work is not done, keep the checkpoints that it may have."""
        where = self.folder / name
        if not done and (where / SCRATCH).is_dir() and any((where / SCRATCH).rglob("*")):
            kept = self.folder / f".{name}.scratch"
            (where / SCRATCH).rename(kept)
            shutil.rmtree(where, ignore_errors=True)
            (where / SCRATCH).parent.mkdir(parents=True)
            kept.rename(where / SCRATCH)
        else:
            shutil.rmtree(where, ignore_errors=True)

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove what an earlier run of the sweep, of other points, was killed in."""
        names = {form for name in names for form in (name, f".{name}.scratch")}
        for entry in self.folder.iterdir():
            if entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)

    def collect(self, name: str) -> None:
        """Take the experiment that a workspace has run into the project, where `dvc exp show` sees it."""
        refs = git(self.folder / name, "for-each-ref", "--format=%(refname)", "refs/exps").split()
        with self._git:
            for ref in (ref for ref in refs if ref.endswith(f"/{name}")):
                git(
                    self.root,
                    *QUIET_GIT,
                    "fetch",
                    "--quiet",
                    "--no-tags",
                    "--no-write-fetch-head",
                    str(self.folder / name),
                    f"+{ref}:{ref}",
                )

    def experiments(self) -> dict[str, str]:
        """Name to commit of each experiment that the project has, whatever commit it started from."""
        lines = git(self.root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
        return {ref.rpartition("/")[2]: commit for ref, commit in map(str.split, lines)}


@contextmanager
def opened(name: str) -> Iterator[Workspaces]:
    """The workspaces of a sweep in the project that this runs in, for one process at a time.

    Raises:
        ValueError: this is no DVC project in Git with a commit, or the sweep is running in another process.
    """
    root = Path.cwd()
    if not (root / ".git").exists() or not (root / ".dvc").is_dir():
        raise ValueError(f"{root} is not the root of a DVC project in Git; run this there")
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD", check=False).strip()
    if not commit:
        raise ValueError("the points run what HEAD holds, and there is no commit yet; commit the project")
    folder = root / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
    except BlockingIOError:
        os.close(lock)
        raise ValueError(f"the sweep {name} is running here in another process; wait for it, or stop it") from None
    try:
        with Repo(str(root)) as repo:
            cache = repo.cache.local_cache_dir
        yield Workspaces(root, folder, commit, cache)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
        os.close(lock)


def differs(root: Path, paths: list[str]) -> list[str]:
    """Those of the paths, and files in them, whose content in the tree is not HEAD's."""
    lines = git(root, "status", "--porcelain", "--untracked-files=all", "-z", "--no-renames", "--", *paths)
    return [line[3:] for line in lines.split("\0") if line]


def git(where: Path, *arguments: str, check: bool = True) -> str:
    """Run git, out of reach of a Ctrl-C, which would leave half a clone or a lock; what it writes.

    Raises:
        StageError: it failed; not if `check` is false.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=where,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    if check and done.returncode:
        raise processes.StageError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
