"""The numbers that matter, from every variant's scores: flat for `dvc metrics`, and a table to read."""

import json
import sys
from pathlib import Path

VARIANTS = ("teacher", "rtn", "ptq", "student")


def summarize(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Flat summary {metric}.{variant} of the four variants' scores, each with .stderr beside it where it has one.

    recovered.{variant} is the share of round to nearest's gap in log-perplexity that a variant wins back:
    (log rtn - log variant) / (log rtn - log teacher). It says something only where rtn is worse than the teacher.
    """
    summary: dict[str, float] = {}
    for variant in VARIANTS:
        mine = scores[variant]
        for metric in ("perplexity", "kl", "top1", "accuracy"):
            if variant == "teacher" and metric in ("kl", "top1"):
                continue  # the teacher against itself
            summary[f"{metric}.{variant}"] = mine[metric]
            summary[f"{metric}.{variant}.stderr"] = mine[f"{metric}.stderr"]
        for name in task_names(scores):
            summary[f"task.{name}.{variant}"] = mine[f"accuracy.{name}"]
            summary[f"task.{name}.{variant}.stderr"] = mine[f"accuracy.{name}.stderr"]
        summary[f"bits_per_weight.{variant}"] = mine["bits_per_weight"]
        summary[f"weight_bytes.{variant}"] = mine["weight_bytes"]
    summary["bits_per_quantized_weight.student"] = scores["student"]["bits_per_quantized_weight"]
    rtn, teacher = (scores[variant]["log_perplexity"] for variant in ("rtn", "teacher"))
    for variant in ("ptq", "student"):
        won = rtn - scores[variant]["log_perplexity"]
        summary[f"recovered.{variant}"] = won / (rtn - teacher) if rtn != teacher else 0.0
    return summary


def task_names(scores: dict[str, dict[str, float]]) -> list[str]:
    """The tasks that the teacher was scored on."""
    keys = (key.split(".") for key in scores["teacher"])
    return sorted({parts[1] for parts in keys if parts[0] == "accuracy" and len(parts) == 2 and parts[1] != "stderr"})


def bars(summary: dict[str, float], names: list[str]) -> list[tuple[str, float]]:
    """Accuracy in % by task and variant, each with a label for a bar of `dvc plots`."""
    return [(f"{name}, {variant}", 100 * summary[f"task.{name}.{variant}"]) for name in names for variant in VARIANTS]


def rows(summary: dict[str, float], method: str) -> list[list[str]]:
    """The score table, a header first: strings ready to print, values with their standard errors."""
    gap = summary["perplexity.rtn"] > summary["perplexity.teacher"]  # without one there is nothing to win back
    names = {"teacher": "teacher (float)", "rtn": "RTN", "ptq": f"PTQ ({method})", "student": "student"}

    def cell(metric: str, variant: str, digits: int, factor: float = 1.0) -> str:
        key = f"{metric}.{variant}"
        if key not in summary:
            return "-"
        error = summary.get(f"{key}.stderr")
        text = f"{summary[key] * factor:.{digits}f}"
        return text if error is None else f"{text} ± {error * factor:.{digits}f}"

    table = [["", "perplexity", "gap won back", "KL", "top-1 %", "accuracy %", "bits/weight", "MB"]]
    for variant in VARIANTS:
        won = summary.get(f"recovered.{variant}")
        table.append(
            [
                names[variant],
                cell("perplexity", variant, 2),
                f"{100 * won:.1f} %" if gap and won is not None else "-",
                cell("kl", variant, 3),
                cell("top1", variant, 1, 100),
                cell("accuracy", variant, 1, 100),
                cell("bits_per_weight", variant, 2),
                f"{summary[f'weight_bytes.{variant}'] / 1e6:.0f}",
            ]
        )
    return table


def main() -> None:
    """Print the score table of a summary.json."""
    file = Path(sys.argv[1])
    table = rows(json.loads(file.read_text()), "calibrated")
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


if __name__ == "__main__":
    main()
