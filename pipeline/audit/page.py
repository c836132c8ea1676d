"""The audit's page: one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.audit import picture, table, trace
from pipeline.audit.cache import Cache
from pipeline.audit.compare import Entry
from pipeline.audit.locks import some
from pipeline.report import page, summary

HASH = 16  # digits of a sha256 in the picture; the text has all
TEMPLATE = Path(__file__).with_name("page.html")
METHOD = (
    "Verdicts are about the version before (or the baseline) and about the number beside them, on the items and "
    "documents that both were scored on (where these are not all, it says so): for accuracy, a mean over tasks, a "
    "permutation test within the tasks (of one task McNemar's exact test); for perplexity, KL and top-1 agreement a "
    "paired bootstrap over documents, or a paired t-test where that is less sure; with Holm's correction over all "
    "{count} comparisons of this page at 5 %. They say what these models do on text and questions of this kind, not "
    "what another seed would give."
)


def render(
    entries: Sequence[Entry],
    metric: str,
    cache: Cache,
    sweeps: Sequence[dict[str, Any]] = (),
    left_out: Sequence[str] = (),
) -> str:
    """The page of an audit, with the lineage of a metric of its last version, where that has it.

    Args:
        sweeps: as `pipeline.report.sweeps.sections` gives them. left_out: the names of those of other models.
    """
    count = sum(len(pair.comparisons) for entry in entries for pair in entry.pairs)
    last_version = entries[-1].version
    lineage = None
    if metric in last_version.metrics:
        chain = list(trace.links(last_version, metric))
        ends = {link.path: trace.weights(link, cache) for link in chain if not last_version.lock.sources(link.maker)}
        notes = {path: "\n".join(f"{n}\nsha256 {h[:HASH]}" for n, h in hashes.items()) for path, hashes in ends.items()}
        drawn, told = picture.lineage(last_version, chain, notes), "\n".join(trace.lines(last_version, metric, cache))
        lineage = {"metric": metric, "picture": drawn, "text": told}
    return page.render(
        TEMPLATE,
        title="Audit",
        subtitle=f"{len(entries)} versions, from {entries[0].version.name} to {last_version.name}",
        overview=table.overview(entries),
        method=METHOD.format(count=count),
        scores=picture.scores(entries, [f"{name}.{table.STUDENT}" for name in ("perplexity", "kl", "accuracy")]),
        entries=[_entry(entry) for entry in entries],
        sweeps=sweeps,
        left_out=left_out,
        lineage=lineage,
    )


def _entry(entry: Entry) -> dict[str, Any]:
    version = entry.version
    values = {name: value for name, value in version.metrics.items() if not name.endswith(summary.DETAILS)}
    return {
        "name": version.name,
        "about": f"{version.commit} {version.about}" if version.commit else "the working tree",
        "previous": entry.previous.name if entry.previous else "",
        "stale": [(stage, some(reasons)) for stage, reasons in version.stale.items()],
        "changes": entry.changes,
        "pairs": entry.pairs,
        "metrics": [(name, f"{value:.6g}", _error(version.metrics, name)) for name, value in values.items()],
    }


def _error(metrics: Mapping[str, float], name: str) -> str:
    """A metric's standard error, or its interval."""
    if f"{name}.low" in metrics:
        return f"{metrics[f'{name}.low']:.3g} to {metrics[f'{name}.high']:.3g}"
    error = metrics.get(f"{name}.stderr")
    return "" if error is None else f"{error:.2g}"
