"""An audit as rows: a table to read in a terminal, and a tidy CSV with every number."""

import math
import textwrap
from collections.abc import Sequence

import pandas as pd

from pipeline.audit import changes
from pipeline.audit.compare import Entry
from pipeline.audit.verdicts import BETTER, SAME, WORSE, Comparison
from pipeline.report import summary

STUDENT = "student"
HEADLINE = {
    "perplexity": "log_perplexity",
    "kl": "kl",
    "top1": "top1",
    "accuracy": "accuracy",
}  # metric: what is compared
SIGNS = {BETTER: "better", WORSE: "worse", SAME: "no diff."}
STALE, NO_CHANGE = "stale", "-"
TASK = "accuracy."  # before a task's name
NAME = 20  # letters of a name that leave room for the commit beside it
INDENT = "    "
COUNTS = ("pairs", "of", "gained", "lost", "changed")
COLUMNS = [
    *("version", "commit", "kind", "name", "variant", "value", "stderr", "stale"),
    *("against", "pairs", "of", "before", "difference", "low", "high", "p", "corrected", "verdict"),
    *("gained", "lost", "changed"),
]


def overview(entries: Sequence[Entry], variant: str = STUDENT) -> list[list[str]]:
    """A row a version, a header first: name, headline scores with the verdict against the version before, changes."""
    rows = [["version", *(f"{metric}.{variant}" for metric in HEADLINE), "changed"]]
    for entry in entries:
        changed = changes.summary(list(entry.changes)) if entry.previous else NO_CHANGE
        rows.append([_name(entry), *(cell(entry, variant, metric) for metric in HEADLINE), changed])
    return rows


def flips(entries: Sequence[Entry], variant: str = STUDENT) -> list[list[str]]:
    """A row a version and task, a header first: how many answers are others than the version before gave, and how many
    of these turned right and wrong. The header alone where nothing is compared."""
    rows = [["version", "task", "items", "changed", "gained", "lost", "verdict"]]
    for entry in entries:
        for pair in entry.pairs:
            if pair.variant == variant and not pair.within:
                rows += [
                    [_name(entry), *_flipped(comparison)] for comparison in pair.comparisons if _is_task(comparison)
                ]
    return rows


def _is_task(comparison: Comparison) -> bool:
    return comparison.measure.startswith(TASK)


def _flipped(comparison: Comparison) -> list[str]:
    counts = (comparison.pairs, comparison.changed, comparison.gained, comparison.lost)
    return [comparison.measure.removeprefix(TASK), *map(str, counts), SIGNS[comparison.verdict]]


def cell(entry: Entry, variant: str, metric: str) -> str:
    """A score with its standard error, and what its difference from the version before shows; where they have not all
    items in common, of how many that is said."""
    name = f"{metric}.{variant}"
    if name not in entry.version.metrics:
        return "-"
    text, error = f"{entry.version.metrics[name]:.4g}", entry.version.metrics.get(f"{name}.stderr")
    text += "" if error is None else f" ± {error:.2g}"
    if entry.version.outdated:
        return f"{text} {STALE}"
    comparison = entry.verdict(variant, HEADLINE[metric])
    if not comparison:
        return text
    part = "" if comparison.whole else f" on {comparison.pairs} of {comparison.of}"
    return f"{text} {SIGNS[comparison.verdict]}{part}"


def tidy(entries: Sequence[Entry]) -> pd.DataFrame:
    """A row a number: each metric as the version's report has it, then each comparison.

    Its columns are COLUMNS; `kind` is metric or comparison.
    """
    rows: list[dict[str, object]] = []
    for entry in entries:
        version = entry.version
        same = {"version": version.name, "commit": version.commit, "stale": version.outdated}
        for name, value in version.metrics.items():
            if not name.endswith(summary.DETAILS):
                details = {
                    end: version.metrics.get(f"{name}.{end}", math.nan) for end in ("stderr", "low", "high", "p")
                }
                rows.append({**same, "kind": "metric", "name": name, "value": value, **details})
        for pair in entry.pairs:
            shared = {**same, "kind": "comparison", "variant": pair.variant, "against": pair.against}
            rows += [{**shared, **_columns(comparison)} for comparison in pair.comparisons]
            if pair.note:
                rows.append({**shared, "verdict": pair.note})
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COUNTS, "Int64"))


def text(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows as aligned text; what changed stands under each, within the terminal's width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        lines.append("  ".join(field.ljust(w) for field, w in zip(row, widths, strict=False)).rstrip())
        if row is not rows[0] and row[-1] != NO_CHANGE:
            lines += textwrap.wrap(
                f"{rows[0][-1]}: {row[-1]}", width, initial_indent=INDENT, subsequent_indent=INDENT * 2
            )
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _columns(comparison: Comparison) -> dict[str, object]:
    """What a comparison holds, by its columns of the CSV."""
    return {
        "name": comparison.measure,
        "value": comparison.after,
        "before": comparison.before,
        "difference": comparison.difference,
        **{
            key: getattr(comparison, key)
            for key in COLUMNS[COLUMNS.index("pairs") :]
            if key not in ("before", "difference")
        },
    }


def _name(entry: Entry) -> str:
    name, commit = entry.version.name, entry.version.commit[:7]
    return name if not commit or name.startswith(commit) or len(name) > NAME else f"{name} {commit}"
