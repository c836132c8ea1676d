"""The audit's pictures: the lineage of a number, and scores over versions."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.audit.compare import Entry
from pipeline.audit.locks import Link
from pipeline.audit.versions import Version
from pipeline.report import plots

WIDTH, HEIGHT = 10.0, 0.8  # of the picture, and of a row of artifacts: inches
HASH = 8  # digits of an md5 that are shown
INK, LINE, FILL, STALE = "#1d2328", "#9aa5ad", "#eef4f7", "#f6d9de"


def lineage(version: Version, links: Sequence[Link], notes: Mapping[str, str]) -> str:
    """A chain as `trace.links` gives it, as SVG: artifacts in rows, each below all that it was made from.

    An arrow that others imply is left out. What a stage made that is stale now has another colour. Notes, by path,
    stand beneath the hash.
    """
    edges = _edges(links)
    rows = _rows([link.path for link in links], edges)
    stages = {link.path: (link.maker.name, link.md5) for link in links}
    places = {path: ((i + 1) / (len(paths) + 1), y) for y, paths in enumerate(rows) for i, path in enumerate(paths)}

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
        axis.axis("off")
        for source, made in _direct(edges):
            (x0, y0), (x1, y1) = places[source], places[made]
            arrow = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", xy=(x1, y1 - 0.3), xytext=(x0, y0 + 0.3), arrowprops=arrow, zorder=1)
        for path, (x, y) in places.items():
            stage, md5 = stages[path]
            colour = STALE if stage in version.stale else FILL
            box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": LINE}
            label = "\n".join(filter(None, [path, f"{stage}  {md5[:HASH]}", notes.get(path)]))
            axis.text(x, y, label, ha="center", va="center", fontsize=9, color=INK, bbox=box, zorder=2)

    return plots.svg(draw, (WIDTH, HEIGHT * len(rows)))


def scores(entries: Sequence[Entry], metrics: Sequence[str]) -> str:
    """Metrics of the versions that are not outdated, with standard errors, a panel each; empty if none has any."""
    versions = [entry.version for entry in entries if not entry.version.outdated]
    metrics = [metric for metric in metrics if any(metric in version.metrics for version in versions)]
    if not metrics:
        return ""

    def draw(figure: Figure) -> None:
        for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            there = [version for version in versions if metric in version.metrics]
            values = [version.metrics[metric] for version in there]
            errors = [version.metrics.get(f"{metric}.stderr", 0.0) for version in there]
            names = [version.name for version in there]
            axis.errorbar(values, range(len(there)), xerr=errors, fmt="o", color=plots.VARIANT_COLOURS["student"])
            axis.set(title=metric, ylim=(len(there) - 0.5, -0.5))
            axis.set_yticks(range(len(there)), names if metric == metrics[0] else [])

    return plots.svg(draw, (10, 1.2 + 0.25 * len(versions)))


def _edges(links: Sequence[Link]) -> list[tuple[str, str]]:
    """From what was read to what was made of it."""
    edges: dict[tuple[str, str], None] = {}
    for link in links:
        for other in links:
            if other.path in link.maker.deps and other.path != link.path:
                edges[other.path, link.path] = None
    return list(edges)


def _direct(edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges whose ends no longer way joins."""
    below: dict[str, list[str]] = {}
    for source, made in edges:
        below.setdefault(source, []).append(made)

    def reaches(start: str, end: str) -> bool:
        return any(path == end or reaches(path, end) for path in below.get(start, ()))

    return [(a, b) for a, b in edges if not any(reaches(other, b) for other in below[a] if other != b)]


def _rows(paths: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Each path one row below the last thing that it was made from."""
    sources: dict[str, list[str]] = {path: [] for path in paths}
    for source, made in edges:
        sources[made].append(source)
    depth: dict[str, int] = {}

    def place(path: str) -> int:
        if path not in depth:
            depth[path] = 1 + max((place(source) for source in sources[path]), default=-1)
        return depth[path]

    for path in sources:
        place(path)
    return [[path for path in sources if depth[path] == y] for y in range(max(depth.values()) + 1)]
