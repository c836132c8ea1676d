"""Where a number comes from: the chain of artifacts behind it, stage by stage, down to the teacher's own file."""

import hashlib
import textwrap
from collections.abc import Iterator, Mapping

from pipeline.audit import changes
from pipeline.audit.cache import Cache
from pipeline.audit.locks import Link
from pipeline.audit.versions import REPORT, Version
from pipeline.knobs.names import unknown

HASH = 12  # digits of a hash that stand in the text
WEIGHTS = ".safetensors"
WIDTH = 100  # of a line of details, letters
SOURCE = ("source", "package", "version", "repo", "revision", "path", "sha256", "file", "file_sha256")


def lines(version: Version, metric: str, cache: Cache) -> Iterator[str]:
    """The lineage of a metric as text, a line a fact.

    Raises:
        ValueError: the version has no such metric.
    """
    if metric not in version.metrics:
        raise ValueError(f"{version.name}: {unknown('metric', metric, version.metrics)}")
    error, low, high = (version.metrics.get(f"{metric}.{end}") for end in ("stderr", "low", "high"))
    sure = "" if error is None else f" ± {error:.2g}"
    sure += "" if low is None or high is None else f" (95 %: {low:.3g} to {high:.3g})"
    yield f"{metric} = {version.metrics[metric]:.6g}{sure}"
    yield f"in {version.name}{f' ({version.commit[:HASH]}, {version.about})' if version.commit else ''}"
    told: set[str] = set()
    for link in links(version, metric):
        indent = "  " * (link.depth + 1)
        mark = f"  STALE: {version.stale[link.maker.name][0]}" if link.maker.name in version.stale else ""
        yield f"{indent}{link.path}  {link.md5[:HASH]}  <- {link.maker.name}{mark}"
        if link.maker.name not in told:
            told.add(link.maker.name)
            yield from (f"{indent}    {detail}" for detail in _details(version, link, cache))


def links(version: Version, metric: str) -> Iterator[Link]:
    """The chain behind a metric: the report's file, the scores that it is made from, and what these were made from."""
    report = version.lock.stages[REPORT]
    yield from (Link(0, path, md5, report) for path, md5 in report.made.items() if path.endswith(".json"))
    told: set[str] = set()
    for path in version.sources(metric):
        for link in version.lock.chain(path):
            key = f"{link.path} {link.md5}"
            if key not in told or link.depth == 0:
                yield Link(link.depth + 1, link.path, link.md5, link.maker)
            told.add(key)


def code_hash(version: Version, link: Link) -> str:
    """One hash of all that the stage read which no stage makes: its code, and data from outside."""
    files = sorted(version.lock.code(link.maker).items())
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _details(version: Version, link: Link, cache: Cache) -> Iterator[str]:
    code = version.lock.code(link.maker)
    yield f"code {code_hash(version, link)[:HASH]} ({len(code)} files)"
    if link.maker.name != REPORT and link.maker.knobs:
        own = f"{link.maker.name.partition('@')[0]}."
        knobs = ", ".join(f"{knob.removeprefix(own)}={value}" for knob, value in link.maker.knobs.items())
        yield from _wrapped(f"knobs {knobs}")
    if link.maker.name in version.environments:
        environment = version.environments[link.maker.name]
        yield from _wrapped(f"ran on {_listed(changes.machine(environment))}")
        used = {library: have for library, have in environment["libraries"].items() if library in link.maker.pins}
        yield from _wrapped(f"with {_listed(used)}")
    facts = cache.manifest(link.md5).get("facts", {})
    source = {key: facts[key] for key in SOURCE if facts.get(key)}
    if link.depth and source:
        yield from _wrapped(f"from {_listed(source)}")
    if not version.lock.sources(link.maker):
        ends = [f"{file} sha256 {digest}" for file, digest in weights(link, cache).items()]
        yield from _wrapped(f"as {', '.join(ends)}" if ends else "it is not in the cache; `dvc pull` brings it")


def weights(link: Link, cache: Cache) -> dict[str, str]:
    """The sha256 of each file of weights of an artifact; empty where it has none, or the cache does not have it."""
    files = cache.manifest(link.md5).get("files", {})
    return {name: digest for name, digest in files.items() if name.endswith(WEIGHTS)}


def _listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
