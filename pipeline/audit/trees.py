"""The project's files at a Git revision, or as they lie in the working tree."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.artifacts import dvc_hashes


class Tree(Protocol):
    """Files by their paths relative to the project."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""

    def files(self, folder: str) -> list[str]:
        """The paths of all files of a folder, sorted."""

    def remedy(self, path: str) -> str:
        """What to do where a file is damaged."""


class WorkingTree:
    """What lies in the project now."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""
        file = self.root / path
        return file.read_bytes() if file.is_file() else None

    def files(self, folder: str) -> list[str]:
        """The paths of all files of a folder that DVC would hash, sorted."""
        return [file.relative_to(self.root).as_posix() for file in dvc_hashes.files_of(self.root / folder)]

    def remedy(self, path: str) -> str:
        """What to do where a file is damaged."""
        return f"`git restore {path}`"


class Commit:
    """What a commit holds; its files are read by one `git cat-file` process that all commits share."""

    def __init__(self, git: "Git", commit: str) -> None:
        self.git, self.commit = git, commit
        listing = git.run("ls-tree", "-r", "-z", commit).split("\0")
        entries = (line.split("\t", 1) for line in listing if line)
        self.blobs = {path: meta.split()[2] for meta, path in entries}

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""
        return self.git.blob(self.blobs[path]) if path in self.blobs else None

    def files(self, folder: str) -> list[str]:
        """The paths of all files of a folder, sorted."""
        return sorted(path for path in self.blobs if path.startswith(f"{folder}/"))

    def remedy(self, path: str) -> str:
        """What to do where a file is damaged."""
        return "this commit was made so: name others"


class Git:
    """A repository, read by Git itself. Contents of blobs are kept, as versions share most of them."""

    def __init__(self, root: Path) -> None:
        self.root, self._blobs = root, dict[str, bytes]()
        self._reader = subprocess.Popen(
            ["git", "cat-file", "--batch"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Git":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.communicate()

    def run(self, *arguments: str) -> str:
        """What a Git command prints.

        Raises:
            ValueError: it fails; in Git's words.
        """
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip() or f"git {arguments[0]} failed")
        return done.stdout

    def blob(self, name: str) -> bytes:
        """The content of a blob."""
        if name not in self._blobs:
            assert self._reader.stdin is not None
            assert self._reader.stdout is not None
            self._reader.stdin.write(f"{name}\n".encode())
            self._reader.stdin.flush()
            size = int(self._reader.stdout.readline().split()[2])
            self._blobs[name] = self._reader.stdout.read(size)
            self._reader.stdout.read(1)  # the line's end after it
        return self._blobs[name]


def md5(tree: Tree, path: str) -> str | None:
    """The hash by which DVC knows a file, or a folder with `.dir` after it; None where there is neither."""
    content = tree.read(path)
    if content is not None:
        return dvc_hashes.file_md5(content)
    if not tree.files(path):
        return None
    return dvc_hashes.folder_md5(_entries(tree, path))


def _entries(tree: Tree, folder: str) -> Iterator[tuple[str, str]]:
    for path in tree.files(folder):
        content = tree.read(path) or b""
        yield path.removeprefix(f"{folder}/"), dvc_hashes.file_md5(content)
