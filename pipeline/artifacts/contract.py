"""The contract of each stage's output: what a folder holds, how it is written whole, how it is checked when read.

Every artifact has a manifest.json: its kind, the version of its layout, the facts that the next stage needs, the
versions of the libraries whose arithmetic is in it, and the sha256 of each file. It holds no time, host or absolute
path, so the same inputs give the same bytes. A folder gets its name only when it is whole.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
LIBRARIES = ("torch", "numpy", "transformers", "compressed-tensors", "gguf", "lm-eval", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Kind:
    """What an artifact is: its name, the version of its layout, and the stage that makes it.

    beside: files and folders that may lie with those of the manifest, and are not read.
    """

    name: str
    version: int
    stage: str
    beside: tuple[str, ...] = ()


TEACHER = Kind("teacher", 1, "teacher")
CORPUS = Kind("corpus", 2, "synthesize")
TARGETS = Kind("targets", 1, "targets")
QUANTIZED = Kind("quantized", 2, "calibrate or distill")
SIGNALS = Kind("signals", 3, "analyze or inspect")
INT4 = Kind("int4", 3, "export", beside=("README.md", ".gitattributes", ".cache", ".git"))  # a card; the hub's
PROOF = Kind("proof", 1, "prove")


@dataclass
class Draft:
    """A folder under way: write files under `path`, put what the next stage needs into `facts`."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def writing(folder: str | Path, kind: Kind) -> Iterator[Draft]:
    """Write an artifact into a temporary folder beside `folder`, which is renamed when it is whole.

    Whatever stood under the name is replaced; after an error or a kill, nothing stands there that was not there before.
    """
    folder = Path(folder)
    draft = Draft(folder.parent / f".{folder.name}.part")
    shutil.rmtree(draft.path, ignore_errors=True)
    draft.path.mkdir(parents=True)
    try:
        yield draft
        manifest = {
            "kind": kind.name,
            "version": kind.version,
            "facts": draft.facts,
            "libraries": {name: version(name) for name in LIBRARIES},
            "files": {name: sha256(draft.path / name) for name in _files(draft.path)},
        }
        write_json(draft.path / MANIFEST, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        draft.path.rename(folder)
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def reading(folder: str | Path, kind: Kind) -> dict[str, Any]:
    """The facts of an artifact, after its kind, its version and every file's sha256 were checked.

    Raises:
        ValueError: there is no such artifact, it is of another kind or version, or its content is not what was
            written; the message names the folder and the stage that makes it.
    """
    folder = Path(folder)
    remedy = f"run `dvc repro` to make it anew (stage: {kind.stage})"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        inside = sorted(str(file.parent) for file in folder.glob(f"*/{MANIFEST}"))
        remedy = f"it holds {', '.join(inside)}" if inside else remedy
        raise ValueError(f"{folder} is no {kind.name} artifact: it has no {MANIFEST}; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is not a manifest (no JSON: {error}); {remedy}") from None
    content = manifest if isinstance(manifest, dict) else {}
    bad = [part for part in ("files", "facts") if not isinstance(content.get(part), dict)]
    if bad:
        raise ValueError(f"{folder / MANIFEST} is not a manifest (it has no {' and no '.join(bad)}); {remedy}")
    name, number, files, facts = content.get("kind"), content.get("version"), content["files"], content["facts"]
    if (name, number) != (kind.name, kind.version):
        raise ValueError(
            f"{folder} holds {name!r} version {number}, but {kind.name!r} version {kind.version} is needed; {remedy}"
        )
    may_lie = (MANIFEST, *kind.beside)
    problems = [
        f"{file}: not in the manifest"
        for file in _files(folder)
        if file not in files and file.partition("/")[0] not in may_lie
    ]
    for file, expected in files.items():
        if not (folder / file).is_file():
            problems.append(f"{file}: missing")
        elif sha256(folder / file) != expected:
            problems.append(f"{file}: its content has changed (sha256 differs from the manifest's)")
    if problems:
        raise ValueError(f"{folder} is not as it was written; {remedy}:\n  " + "\n  ".join(problems))
    return facts


def fingerprint(folder: str | Path) -> str:
    """sha256 of an artifact's manifest, which covers every byte of it."""
    return sha256(Path(folder) / MANIFEST)


def sha256(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(file: Path, content: Any) -> None:
    """JSON with a fixed order and shape, finite numbers only, written whole or not at all."""
    write_text(file, json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_text(file: Path, text: str) -> None:
    """UTF-8 text, written whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def write_scores(file: Path, scores: dict[str, float], read: dict[str, str] | None = None) -> None:
    """A variant's scores: one flat object of finite numbers; and `read`, what they were read from, where that is given.

    Raises:
        ValueError: a score is not finite.
    """
    bad = {name: value for name, value in scores.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(f"these scores are not finite: {bad}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**scores, **({"read": read} if read else {})})


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
