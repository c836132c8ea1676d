"""The numbers that matter, from every variant's scores: flat for `dvc metrics`, and a table to read."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.evaluation import provenance
from pipeline.evaluation.tasks import GROUPS, TASKS, in_writing
from pipeline.report import gap

VARIANTS = ("teacher", "rtn", "ptq", "student")
CALIBRATION = ("calibration.brier", "calibration.ece")
DIFFERENCE = "difference."  # before the name of a task that is compared with another
DETAILS = (".stderr", ".low", ".high", ".p")  # after a number's name: its error, interval, and p-value


def summarize(scores: Mapping[str, Mapping[str, Any]], documents: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """`of_scores`, and what the items give.

    recovered.{variant} is the share of round to nearest's gap in log-perplexity that a variant wins back, with its 95 %
    interval as .low and .high. Where that gap is not above 0 beyond its error there is none of them (`gap.won_back`).

    Args:
        scores: as `evaluate` writes them, with what they were read from. documents: as it keeps them, of `Items`.

    Raises:
        ValueError, KeyError: as `of_scores`.
    """
    return of_scores(scores) | gap.won_back(documents, ("ptq", "student"))


def of_scores(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Flat summary {metric}.{variant} of the four variants' scores, each with .stderr beside it where it has one.

    Raises:
        ValueError: they were not all read from the same; each text, data set or model that differs is named.
        KeyError: a variant or a score is missing.
    """
    read = {variant: scores[variant].get(provenance.READ) for variant in VARIANTS}
    if problems := provenance.mixed(read, VARIANTS):
        remedy = "`dvc repro -f --single-item evaluate@VARIANT` scores the older ones anew"
        raise ValueError("\n  ".join([f"the scores were not all read from the same; {remedy}:", *problems]))
    summary: dict[str, float] = {}
    names = task_names(scores)
    written = all(map(in_writing, names))
    for variant in VARIANTS:
        mine = scores[variant]
        for metric in ("perplexity", "kl", "top1", "accuracy"):
            if variant == "teacher" and metric in ("kl", "top1"):
                continue  # the teacher against itself
            if metric == "accuracy" and metric not in mine and written:
                continue  # no task has a part in it
            summary[f"{metric}.{variant}"] = mine[metric]
            summary[f"{metric}.{variant}.stderr"] = mine[f"{metric}.stderr"]
        for name, score in _of_tasks(scores).items():
            summary[f"{name}.{variant}"] = mine[score]
            summary[f"{name}.{variant}.stderr"] = mine[f"{score}.stderr"]
        summary[f"bits_per_weight.{variant}"] = mine["bits_per_weight"]
        summary[f"weight_bytes.{variant}"] = mine["weight_bytes"]
    summary["bits_per_quantized_weight.student"] = scores["student"]["bits_per_quantized_weight"]
    return summary


def _of_tasks(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names in the summary, less the variant, of what is scored on tasks, and those among the scores."""
    teacher = scores["teacher"]
    more = [name for name in teacher if name in CALIBRATION or name.startswith(DIFFERENCE)]
    return {
        **{f"task.{name}": f"accuracy.{name}" for name in task_names(scores)},
        **{f"group.{name}": f"accuracy.{name}" for name in group_names(scores)},
        **{name: name for name in more if not name.endswith(DETAILS)},
    }


def task_names(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks that the teacher was scored on, by group and name."""
    groups = {name: GROUPS.index(task.group) for name, task in TASKS.items()}
    return sorted(_of_accuracy(scores) - {*GROUPS}, key=lambda name: (groups.get(name, len(GROUPS)), name))


def group_names(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The groups of these, in their order."""
    return [group for group in GROUPS if group in _of_accuracy(scores)]


def _of_accuracy(scores: Mapping[str, Mapping[str, Any]]) -> set[str]:
    keys = (key.split(".") for key in scores["teacher"])
    return {parts[1] for parts in keys if parts[0] == "accuracy" and len(parts) == 2 and parts[1] != "stderr"}


def bars(summary: dict[str, float], names: list[str]) -> list[tuple[str, float]]:
    """Accuracy in % by task and variant, each with a label for a bar of `dvc plots`."""
    return [(f"{name}, {variant}", 100 * summary[f"task.{name}.{variant}"]) for name in names for variant in VARIANTS]


def rows(summary: dict[str, float], method: str) -> list[list[str]]:
    """The score table, a header first: strings ready to print, values with their standard errors."""
    names = _names(method)

    def cell(metric: str, variant: str, digits: int, factor: float = 1.0) -> str:
        key = f"{metric}.{variant}"
        if key not in summary:
            return "-"
        error = summary.get(f"{key}.stderr")
        text = f"{summary[key] * factor:.{digits}f}"
        return text if error is None else f"{text} ± {error * factor:.{digits}f}"

    table = [["", "perplexity", "gap won back", "KL", "top-1 %", "accuracy %", "bits/weight", "MB"]]
    for variant in VARIANTS:
        table.append(
            [
                names[variant],
                cell("perplexity", variant, 2),
                _won_back(summary, variant),
                cell("kl", variant, 3),
                cell("top1", variant, 1, 100),
                cell("accuracy", variant, 1, 100),
                cell("bits_per_weight", variant, 2),
                _megabytes(summary[f"weight_bytes.{variant}"]),
            ]
        )
    return table


def group_rows(summary: Mapping[str, float], method: str) -> list[list[str]]:
    """Accuracy by group in %, and calibration, a header first; values with their standard errors."""
    groups = [group for group in GROUPS if f"group.{group}.teacher" in summary]
    columns = {f"group.{group}": f"{group} %" for group in groups}
    columns |= {name: name.rpartition(".")[2] for name in CALIBRATION if f"{name}.teacher" in summary}
    names, table = _names(method), [["", *columns.values()]]
    for variant in VARIANTS:
        cells = []
        for column in columns:
            digits, factor = (3, 1.0) if column in CALIBRATION else (1, 100.0)
            value, error = (summary[f"{column}.{variant}{end}"] * factor for end in ("", ".stderr"))
            cells.append(f"{value:.{digits}f} ± {error:.{digits}f}")
        table.append([names[variant], *cells])
    return table


def _names(method: str) -> dict[str, str]:
    return {"teacher": "teacher (float)", "rtn": "RTN", "ptq": f"PTQ ({method})", "student": "student"}


def _won_back(summary: Mapping[str, float], variant: str) -> str:
    """A share with its interval; summaries of before 2026-11-29 have none."""
    name = f"recovered.{variant}"
    if name not in summary:
        return "-"
    share = f"{100 * summary[name]:.1f} %"
    ends = [summary[f"{name}.{end}"] for end in ("low", "high") if f"{name}.{end}" in summary]
    return f"{share} ({' to '.join(f'{100 * end:.0f}' for end in ends)})" if ends else share


def _megabytes(stored: float) -> str:
    return f"{stored / 1e6:.0f}" if stored >= 1e7 else f"{stored / 1e6:.2g}"


def gap_note(summary: Mapping[str, float]) -> str:
    """What is to be said of a gap that has no shares: that it is inside its error, or no gap; else nothing."""
    size, p = (summary.get(f"gap.{gap.NEAREST}{end}") for end in ("", ".p"))
    if gap.significant(summary) or size is None or p is None:
        return ""
    if size <= 0:
        return f"RTN loses nothing in log-perplexity ({size:+.2g} nats a token), so there is no gap to win back."
    return (
        f"RTN's gap in log-perplexity, {size:.2g} nats a token, is inside its own error (p = {p:.2g}), so no share of "
        "it is given; more evaluate.windows might tell."
    )


def main() -> None:
    """Print the score table of a summary.json."""
    file = Path(sys.argv[1])
    summary = json.loads(file.read_text())
    table = rows(summary, "calibrated")
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print(
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
                ]
            )
        )
    if note := gap_note(summary):
        print(note)


if __name__ == "__main__":
    main()
