"""The hashes by which DVC knows files and folders."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

COMPILED = "__pycache__"  # a folder that .dvcignore keeps out of every hash


def file_md5(content: bytes) -> str:
    """Of a file's content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def folder_md5(entries: Iterable[tuple[str, str]]) -> str:
    """Of a folder, from path within it and md5 of each of its files; it ends in `.dir`."""
    listed = [{"md5": digest, "relpath": path} for path, digest in sorted(entries)]
    return f"{file_md5(json.dumps(listed).encode())}.dir"


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that DVC would hash, sorted."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and COMPILED not in file.parts)


def path_md5(path: Path) -> str:
    """Of what lies at a path, a file or a folder; empty where there is nothing."""
    if path.is_file():
        return file_md5(path.read_bytes())
    files = files_of(path)
    return (
        folder_md5((file.relative_to(path).as_posix(), file_md5(file.read_bytes())) for file in files) if files else ""
    )


def of_deps(deps: Iterable[str], files: dict[str, str]) -> dict[str, str]:
    """The hash of each dep that is one of the files or a folder of some, by the files' own md5."""
    hashes = {}
    for dep in deps:
        inside = [(path.removeprefix(f"{dep}/"), md5) for path, md5 in files.items() if path.startswith(f"{dep}/")]
        if dep in files:
            hashes[dep] = files[dep]
        elif inside:
            hashes[dep] = folder_md5(inside)
    return hashes
