"""A version of the project: what a Git revision, a DVC experiment or the working tree holds and what it scored."""

import re
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.audit import locks, numbers
from pipeline.audit.cache import Cache
from pipeline.audit.locks import Lock
from pipeline.audit.trees import Commit, Git, Tree, WorkingTree, md5
from pipeline.report import proofs, summary

HERE = "workspace"  # how DVC calls the working tree, too
EXPERIMENTS = "refs/exps"
EVALUATE, PROVE, REPORT = "evaluate@", "prove", "report"
CONSTRAINTS = "constraints.txt"
HASH = 10  # digits of a commit that stand for its name
BASE = 7  # and before an experiment's name, where another has the same


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        name: as it was asked for. commit: its full id, empty for the working tree. about: its date and subject.
        knobs: by their dotted names. metrics: flat, as the report wrote them, or would from newer scores; empty where
            there are none. outdated: whether they are older than what they should be made from.
        pins: library to version. stale: why what a stage made is not what this version would make, by stage.
        environments: what each stage ran with and on, as it wrote it down; nothing of one that did not.
    """

    name: str
    commit: str
    about: str
    lock: Lock
    knobs: dict[str, Any]
    metrics: dict[str, float]
    pins: dict[str, str]
    stale: dict[str, list[str]] = field(default_factory=dict)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    outdated: bool = False

    @property
    def variants(self) -> list[str]:
        """What was scored."""
        return [name.removeprefix(EVALUATE) for name in self.lock.stages if name.startswith(EVALUATE)]

    def items(self, variant: str) -> str | None:
        """The md5 of the answers and documents of a variant, where the version kept them."""
        return _items(self.lock, variant)

    def items_folder(self, variant: str) -> str | None:
        """Where they lie."""
        made = self.lock.stages[f"{EVALUATE}{variant}"].made
        return next((path for path, md5 in made.items() if md5 == self.items(variant)), None)

    def scores(self, variant: str) -> str | None:
        """The file of a variant's scores."""
        stage = self.lock.stages.get(f"{EVALUATE}{variant}")
        return next((path for path, md5 in stage.made.items() if not md5.endswith(".dir")), None) if stage else None

    @property
    def proofs(self) -> str | None:
        """The folder of the proofs of the exports."""
        return next(iter(self.lock.stages[PROVE].made), None) if PROVE in self.lock.stages else None

    def sources(self, metric: str) -> list[str]:
        """What a metric was made from: the proofs, or the scores of the variant that it names, or of all variants."""
        if metric.startswith(f"{proofs.PREFIX}."):
            return [self.proofs] if self.proofs else []
        named = [variant for variant in self.variants if variant in metric.split(".")]
        every = metric.startswith(("recovered.", "gap.")) or not named
        return [*filter(None, map(self.scores, self.variants if every else named))]


def load(git: Git, name: str, cache: Cache) -> Version:
    """A version by name: a commit, tag, branch or experiment, or the working tree.

    Raises:
        ValueError: there is no such revision, or its files are damaged.
    """
    tree: Tree = WorkingTree(git.root)
    commit = about = ""
    if name != HERE:
        commit = resolve(git, name)
        about = git.run("log", "-1", "--format=%cs %s", commit).strip()
        tree = Commit(git, commit)
    try:
        lock = locks.load(tree)
        knobs = locks.mapping(tree, locks.PARAMS)
        stale, ran = _stale(tree, lock), environments(lock, cache)
        metrics, outdated = _metrics(tree, lock, stale, cache)
        return Version(name, commit, about, lock, knobs, metrics, _pins(tree), stale, ran, outdated)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{name}: {error}") from None


def resolve(git: Git, name: str) -> str:
    """The commit that a name means; an experiment's name counts as one.

    Raises:
        ValueError: it means none, or several experiments.
    """
    experiments = experiments_of(git)
    if name in experiments:
        return experiments[name]
    try:
        return git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
    except ValueError:
        alike = [experiment for experiment in experiments if experiment.endswith(f"/{name}")]
        if alike:
            raise ValueError(f"{name}: several experiments are called so; write {' or '.join(alike)}") from None
        raise ValueError(
            f"{name}: no commit, tag, branch or DVC experiment is called so; see `dvc exp show -A`"
        ) from None


def default(git: Git, commits: int) -> list[str]:
    """What an audit looks at unless it is told: the last commits that changed dvc.lock, oldest first, all experiments,
    and the working tree. Of merged branches only the merge counts, so that each commit comes from the one before it."""
    changed = git.run("log", f"-n{commits}", "--first-parent", "--format=%h", "--", locks.LOCK).split()
    return [*reversed(changed), *experiments_of(git), HERE]


def predecessors(git: Git, versions: Sequence[Version], cache: Cache) -> list[Version | None]:
    """What each version is set against unless it is told: an experiment against the commit that it began from, the
    working tree against HEAD, others against the one before them."""
    bases = _bases(git)
    loaded: dict[str, Version | None] = {version.commit: version for version in versions}
    previous: list[Version | None] = []
    before: Version | None = None
    for version in versions:
        base = git.run("rev-parse", "HEAD").strip() if version.name == HERE else bases.get(version.name)
        if base is not None and base not in loaded:
            loaded[base] = _readable(git, base[:HASH], cache)
        previous.append(loaded[base] if base else before)
        before = before if base else version
    return previous


def _readable(git: Git, name: str, cache: Cache) -> Version | None:
    """A version, or None where its files are damaged."""
    try:
        return load(git, name, cache)
    except ValueError:
        return None


def experiments_of(git: Git) -> dict[str, str]:
    """The commits of all DVC experiments that have a name, by it, in the order of their making.

    Where several have the same name, the commit that each began from stands before it, and a slash.
    """
    return {name: commit for name, _, commit in _experiments(git)}


def _bases(git: Git) -> dict[str, str]:
    """The commit that each experiment began from."""
    return {name: base for name, base, _ in _experiments(git)}


def _experiments(git: Git) -> list[tuple[str, str, str]]:
    """Name, base and commit of each; DVC keeps the first two in the name of a ref."""
    listing = git.run("for-each-ref", "--sort=creatordate", "--format=%(refname) %(objectname)", EXPERIMENTS)
    experiments: list[tuple[str, str, str]] = []
    for line in listing.splitlines():
        ref, commit = line.split()
        parts = re.fullmatch(rf"{EXPERIMENTS}/([0-9a-f]{{2}})/([0-9a-f]{{38}})/([^/]+)", ref)
        if parts:
            experiments.append((parts[3], parts[1] + parts[2], commit))
    count = Counter(name for name, _, _ in experiments)
    return [(name if count[name] == 1 else f"{base[:BASE]}/{name}", base, commit) for name, base, commit in experiments]


def summary_file(lock: Lock) -> str | None:
    """The file in which the report wrote its numbers, the one that is no page."""
    made = lock.stages[REPORT].made if REPORT in lock.stages else {}
    return next((path for path in made if path.endswith(".json")), None)


def written(tree: Tree, lock: Lock) -> dict[str, float]:
    """The numbers of the report; empty where it wrote none, or they are no numbers."""
    path = summary_file(lock)
    return numbers.read(tree.read(path)) or {} if path else {}


def _stale(tree: Tree, lock: Lock) -> dict[str, list[str]]:
    """As the lock says, and if the report's numbers are not those that it wrote."""
    stale, path = lock.stale(tree), summary_file(lock)
    if path and md5(tree, path) not in (None, lock.stages[REPORT].outs[path]):
        stale.setdefault(REPORT, []).append(f"{path} is not what {REPORT} made")
    return stale


def _metrics(tree: Tree, lock: Lock, stale: Container[str], cache: Cache) -> tuple[dict[str, float], bool]:
    """The report's numbers, and whether they are older than what they should be made from.

    Where the report alone is behind, as in an experiment that ended with the scores, they are made from those.
    """
    if REPORT not in stale:
        return written(tree, lock), False
    current = [variant for variant in summary.VARIANTS if f"{EVALUATE}{variant}" not in stale]
    scores = {variant: variant_scores for variant in current if (variant_scores := _scores(lock, variant, cache))}
    kept = {variant: cache.items(_items(lock, variant) or "") for variant in current}
    documents = {variant: items.documents for variant, items in kept.items() if items is not None}
    try:
        return summary.summarize(scores, documents), False
    except (KeyError, ValueError):  # a variant is behind or not in the cache, the code of then scored less, or a mix
        return written(tree, lock), True


def _scores(lock: Lock, variant: str, cache: Cache) -> dict[str, float]:
    """A variant's scores; empty where the version or the cache has none."""
    stage = lock.stages.get(f"{EVALUATE}{variant}")
    return next((cache.scores(md5) for md5 in stage.made.values() if not md5.endswith(".dir")), {}) if stage else {}


def _items(lock: Lock, variant: str) -> str | None:
    stage = lock.stages.get(f"{EVALUATE}{variant}")
    return next((md5 for md5 in stage.made.values() if md5.endswith(".dir")), None) if stage else None


def environments(lock: Lock, cache: Cache) -> dict[str, dict[str, Any]]:
    """What the stages wrote down of what they ran with, as far as the cache has it."""
    records = {name: cache.record(stage.outs.get(stage.environment, "")) for name, stage in lock.stages.items()}
    return {name: record for name, record in records.items() if record}


def _pins(tree: Tree) -> dict[str, str]:
    lines = (tree.read(CONSTRAINTS) or b"").decode().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip(): version.split("#")[0].strip() for name, version in pairs}
