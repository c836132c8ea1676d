"""What is behind an exported folder, from dvc.lock and the artifacts.

The stages with their hashes, knobs and libraries, the teacher, the scores. What does not fit the folder any more is
left out, with a note.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts import contract, dvc_hashes
from pipeline.audit import changes, trace, versions
from pipeline.audit.cache import Cache
from pipeline.audit.locks import Stage
from pipeline.audit.trees import Git
from pipeline.audit.versions import EVALUATE, HERE, PROVE, Version
from pipeline.evaluation import provenance
from pipeline.knobs.long_scheme import AnyScheme
from pipeline.knobs.scheme import Scheme
from pipeline.report import proofs

TEACHER = "teacher"


@dataclass(frozen=True)
class Step:
    """A stage behind a folder: what it made and by which code, as hashes; its knobs; what it ran with and on."""

    stage: str
    path: str
    md5: str
    code: str
    knobs: dict[str, Any]
    libraries: dict[str, str]
    machine: dict[str, Any]


@dataclass
class Origin:
    """What is behind a folder.

    variant: rtn, ptq or student; empty where the folder lies in no project. steps: from the teacher on. teacher: the
    facts of where it comes from. scheme: None where it is not known. scores: of the variant and of the teacher, as
    `evaluate` wrote them. scored: the folder that was scored. parity: of each runtime that `prove` ran the file in, its
    top1_student, kl_student, and `bound`, whether that is a lower bound. notes: why something is missing.
    """

    variant: str = ""
    steps: list[Step] = field(default_factory=list)
    teacher: dict[str, str] = field(default_factory=dict)
    scheme: Scheme | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    scored: str = ""
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def of(folder: Path) -> Origin:
    """What is behind a folder of the export.

    Raises:
        ValueError: dvc.lock or the scores are damaged.
    """
    folder = folder.resolve()
    try:
        root = Repo.find_root(str(folder))
    except DvcException:
        return Origin(notes=["The folder lies in no DVC project, so where it comes from is not known."])
    with Repo(root) as repo, Git(Path(repo.root_dir)) as git:
        cache = Cache(Path(repo.cache.local.path))
        version = versions.load(git, HERE, cache)
        return _origin(version, cache, git.root, folder.relative_to(git.root.resolve()).as_posix())


def _origin(version: Version, cache: Cache, root: Path, path: str) -> Origin:
    maker = version.lock.maker(path)
    if maker is None:
        return Origin(notes=[f"No stage of the project makes {path}, so where it comes from is not known."])
    out = next(out for out in maker.outs if path == out or path.startswith(f"{out}/"))
    listing = cache.listing(maker.outs[out])
    inside = f"{path}/{contract.MANIFEST}".removeprefix(f"{out}/")
    if (listing or {}).get(inside) != dvc_hashes.path_md5(root / path / contract.MANIFEST):
        why = "the DVC cache has no record of it" if listing is None else f"it is not what {maker.name} made last"
        return Origin(notes=[f"Where this folder comes from, and what it scored, is left out: {why}."])
    origin = Origin(maker.name.partition("@")[2])
    origin.steps = list(_steps(version, cache, out))
    origin.teacher = _teacher(version, cache, out)
    origin.scheme = _scheme(step.knobs for step in origin.steps)
    made = {f"{out}/{name}": md5 for name, md5 in (listing or {}).items()}
    try:
        origin.scored, origin.scores = _scores(version, root, origin.variant, made)
    except ValueError as error:
        origin.notes.append(f"Scores are left out: {error}.")
    try:
        origin.parity = _parity(version, cache, root, origin.variant, Path(path).name, made)
    except ValueError as error:
        origin.notes.append(f"What runtimes made of the file is left out: {error}.")
    return origin


def _steps(version: Version, cache: Cache, path: str) -> Iterator[Step]:
    """The stages behind a path, a step for each artifact, those first that need the fewest others."""
    told = set()
    for link in sorted(version.lock.chain(path), key=lambda link: _rank(version, link.maker)):
        if link.path in told:
            continue
        told.add(link.path)
        record: dict[str, Any] = version.environments.get(link.maker.name, {})
        libraries = {name: have for name, have in record.get("libraries", {}).items() if name in link.maker.pins}
        machine = changes.machine(record) if record else {}
        knobs = {name: _without_place(value) for name, value in link.maker.knobs.items()}
        code = trace.code_hash(version, link)
        yield Step(link.maker.name, link.path, link.md5, code, knobs, libraries, dict(machine))


def _rank(version: Version, stage: Stage) -> int:
    """How many stages a stage needs."""
    return len({link.maker.name for out in stage.made for link in version.lock.chain(out)})


def _without_place(value: Any) -> Any:
    """A knob's value, of a place on this machine its last part alone."""
    return f"…/{os.path.basename(value)}" if isinstance(value, str) and os.path.isabs(value) else value


def _teacher(version: Version, cache: Cache, path: str) -> dict[str, str]:
    """Where the teacher comes from, and the sha256 of its weights."""
    for link in version.lock.chain(path):
        if link.maker.name == TEACHER:
            facts: Mapping[str, Any] = cache.manifest(link.md5).get("facts", {})
            source = {key: _without_place(facts[key]) for key in (*trace.SOURCE, "commit", "stored") if facts.get(key)}
            return source | trace.weights(link, cache)
    return {}


def _scheme(knobs: Any) -> Scheme | None:
    """The scheme that the stages were given; None where it cannot be read."""
    for stage_knobs in knobs:
        parts = {name: value for name, value in stage_knobs.items() if name.partition(".")[0] == "scheme"}
        if parts:
            try:
                return TypeAdapter(AnyScheme).validate_python(_nested(parts)["scheme"])
            except ValidationError:
                return None
    return None


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs by dotted names as a tree."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        branch = tree
        for part in folders:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return tree


def _scores(version: Version, root: Path, variant: str, made: dict[str, str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The folder that was scored, and the scores of the variant and of the teacher.

    Raises:
        ValueError: they are not there, are of another state of the folder, or were not read from the same; in words.
    """
    scores = {}
    for name in (variant, TEACHER):
        file = version.scores(name)
        if file is None or not (root / file).is_file():
            raise ValueError(f"{EVALUATE}{name} has made none")
        if dvc_hashes.path_md5(root / file) != version.lock.stages[f"{EVALUATE}{name}"].made[file]:
            raise ValueError(f"{file} is not what {EVALUATE}{name} made")
        scores[name] = contract.read_json(root / file)
    scored = _read(version, f"{EVALUATE}{variant}", made)
    if problems := provenance.mixed({name: scores[name].get(provenance.READ) for name in scores}, [*scores]):
        raise ValueError(f"they were not read from the same ({'; '.join(problems)})")
    return scored, scores


def _parity(
    version: Version, cache: Cache, root: Path, variant: str, format_name: str, made: dict[str, str]
) -> dict[str, dict[str, float]]:
    """What runtimes made of a format's file; nothing where none was asked.

    Raises:
        ValueError: they were asked about another state of the folder, or the proofs are damaged.
    """
    if version.proofs is None:
        return {}
    listing = cache.listing(version.lock.stages[PROVE].made[version.proofs]) or {}
    if listing.get(contract.MANIFEST) != dvc_hashes.path_md5(root / version.proofs / contract.MANIFEST):
        raise ValueError(f"{version.proofs} is not what {PROVE} made")
    measured = proofs.read(root / version.proofs).exports.get((variant, format_name))
    if measured is None:
        return {}
    _read(version, PROVE, made)
    parts = {runtime: proofs.of_runtime(measured, runtime) for runtime in proofs.runtimes(measured)}
    return {
        runtime: {**{name: numbers[name] for name in proofs.COMPARED}, "bound": float(proofs.is_bound(numbers))}
        for runtime, numbers in parts.items()
    }


def _read(version: Version, stage: str, made: dict[str, str]) -> str:
    """The folder among these files that a stage read.

    Raises:
        ValueError: it read another state of them.
    """
    deps = version.lock.stages[stage].deps
    mine = {dep: md5 for dep, md5 in dvc_hashes.of_deps(deps, made).items() if made}
    if not mine or any(deps[dep] != md5 for dep, md5 in mine.items()):
        raise ValueError(f"{stage} read another state of the export")
    return next(iter(mine))
