"""docs/schemes.md: what every point of a laboratory scores, and what it loses on each group, as a page in Markdown."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artifacts import contract
from pipeline.recommend import told
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import Part
from pipeline.recommend.least import KINDS
from pipeline.recommend.point import Point

SCORES = ("log_perplexity", "kl", "top1")  # of points.csv
MANY = 1e4  # of a perplexity, from which on its digits say nothing
TITLES = {
    (0,): "Weights",
    (0, 1): "Weights and inputs",
    (0, 2): "Weights and KV cache",
    (0, 1, 2): "All three",
}


def page(judge: Judge, points: pd.DataFrame, sweep: str, claims: Sequence[Sequence[str]] = ()) -> str:
    """The page.

    Args:
        points: points.csv of the sweep. sweep: its name. claims: a header, and a row for each of the paper's claims.

    Raises:
        ValueError: points.csv lacks a score or a point.
    """
    rows = {str(row["experiment"]): row for row in points.to_dict("records")}
    absent = [score for score in SCORES if score not in points]
    absent += [point.name for point in judge.laboratory.points if point.name not in rows]
    if absent:
        raise ValueError(f"points.csv has no {', '.join(absent)}; the sweep's file names the metrics")
    text = textwrap.fill(_preamble(judge, sweep), 120, break_on_hyphens=False)
    tables = [
        f"## {title}\n\n{_table(judge, mine, rows)}\n"
        for quantized, title in TITLES.items()
        if (mine := [point for point in judge.laboratory.points if _quantized(point) == quantized])
    ]
    if claims:
        tables.append(f"## The paper's claims\n\n{_markdown([claims[0], ['---'] * len(claims[0]), *claims[1:]])}\n")
    return "\n".join([f"# What bits cost\n\n{text}\n", *tables])


def _quantized(point: Point) -> tuple[int, ...]:
    return tuple(i for i in range(len(KINDS)) if point.bits[i])


def _table(judge: Judge, points: list[Point], rows: Mapping[str, Mapping[Any, Any]]) -> str:
    wholes = judge.laboratory.wholes
    header = ["", "perplexity", "KL to teacher", "top-1 agreement", *(part.group for part in wholes)]
    lines = [header, ["---"] * len(header)]
    for point in points:
        row = rows[point.name]
        error = row.get("kl.stderr", math.nan)
        kl = f"{row['kl']:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
        perplexity = math.exp(row["log_perplexity"])
        shown = f"{perplexity:.2f}" if perplexity < MANY else f"{perplexity:.1e}"
        fidelity = [point.label, shown, kl, f"{100 * row['top1']:.1f} %"]
        lines.append([*fidelity, *(_loss(judge, point, part) for part in wholes)])
    return _markdown(lines)


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _loss(judge: Judge, point: Point, part: Part) -> str:
    verdict = judge.verdict(point, part)
    return f"{told.loss(verdict)}, {verdict.verdict}"


def _preamble(judge: Judge, sweep: str) -> str:
    items, share = len(judge.laboratory.items), f"{100 * judge.margin:g} %"
    return (
        "KL (nats a token) and top-1 agreement: on held-out text of the teacher's own. By group: the loss of accuracy "
        "as a share of the teacher's (of dialogue: the tokens of the teacher's answers that are likeliest no more), "
        f"± one standard error, and whether it is shown to be within {share} "
        '("Evaluating Quantized Large Language Models", 2402.18158, allows 2 %): within, beyond, not shown, or no '
        f"signal where the teacher is not above chance. {items:,} items, the same for all points. From the sweep "
        f"sweeps/{sweep}.yaml by `python -m pipeline.recommend --page docs/schemes.md`. Each verdict stands for "
        "itself: [laboratory](laboratory.md) says how to choose among them."
    )


def write(judge: Judge, answers: Path, file: Path, claims: Sequence[Sequence[str]] = ()) -> None:
    """Write the page of a laboratory whose answers and points.csv lie in one folder; claims: as of `page`.

    Raises:
        ValueError: there is no points.csv, or it lacks something.
    """
    points = answers.with_name("points.csv")
    if not points.is_file():
        raise ValueError(f"{points} does not exist; the page needs the points' scores beside their answers")
    text = page(judge, pd.read_csv(points), answers.parent.name, claims)
    contract.write_text(file, text)
