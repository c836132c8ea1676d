"""What is recommended, in words and columns: for the terminal, and the same cells for the report."""

import textwrap
from collections.abc import Sequence

import numpy as np

from pipeline.recommend.choice import Choice
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import Part
from pipeline.recommend.least import Line, written
from pipeline.recommend.point import Point
from pipeline.report.margin import rounded_up
from pipeline.statistics.non_inferiority import NO_SIGNAL, NOT_SHOWN, Verdict

NOTHING = "-"
BLANK = "\N{NO-BREAK SPACE}"
HEADER = ("group", "sub-task", "of", "enough", "loss there", "items", "the next step")
TITLES = {"weights": "weights", "activations": "inputs", "kv": "KV cache"}
NOTE = (
    "Enough: the fewest bits that are shown to lose less than the margin, and all more bits likewise, by one-sided "
    "tests at 5 % on the same items. ± is one standard error; below 0 is a gain. Beyond: shown to lose more. Not "
    "shown: neither; so many more items would show in 4 of 5 cases that nothing is lost, if nothing is."
)


def rows(lines: Sequence[Line]) -> list[list[str]]:
    """A header and a row a line."""
    return [[*HEADER], *(_row(line) for line in lines)]


def by_part(cells: Sequence[Sequence[str]], width: int) -> str:
    """What `rows` gives, for a terminal: a head a sub-task, and below it a line a kind, folded at a width."""
    lines = list[str]()
    above = ("", "")
    for group, part, kind, enough, there, items, following in cells[1:]:
        if (group, part) != above:
            lines.append(f"{group}: {part}" + ("" if items == NOTHING else f", {items} items"))
        above = group, part
        reached = "none is shown to be enough" if enough == NOTHING else f"{enough} is enough"
        reached += "" if there == NOTHING else f", loss {there}"
        told = [following] if following.startswith(NO_SIGNAL) else [reached, following]
        for text, indent in zip(told, (f"  {kind:9} ", " " * 12), strict=False):
            lines += _folded(text, width, indent)
    return "\n".join(lines)


def _folded(text: str, width: int, indent: str) -> list[str]:
    """In lines, none of which ends within a number and its error."""
    whole = text.replace(" ± ", f"{BLANK}±{BLANK}").replace(" %", f"{BLANK}%")
    return [
        line.replace(BLANK, " ")
        for line in textwrap.wrap(whole, width, initial_indent=indent, subsequent_indent=" " * (len(indent) + 2))
    ]


def table(cells: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def blocks(cells: Sequence[Sequence[str]], width: int) -> str:
    """Rows with long cells: the first and the last cell, and the others below with their titles, within a width."""
    header, *body = cells
    lines = []
    for first, *middle, last in body:
        lines.append(f"{first}: {last}")
        for title, cell in zip(header[1:-1], middle, strict=True):
            lines += textwrap.wrap(f"{title}: {cell}", width, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def loss(verdict: Verdict) -> str:
    """The loss with its error."""
    if not np.isfinite(verdict.loss):
        return NOTHING
    return f"{100 * verdict.loss:z.1f} ± {100 * verdict.loss_error:.1f} %"


def verdict_text(verdict: Verdict) -> str:
    """The verdict, and of "not shown" how many items it needs."""
    if verdict.verdict != NOT_SHOWN:
        return verdict.verdict
    return f"{NOT_SHOWN}, {_needs(verdict.more)}"


def choice_lines(judge: Judge, choice: Choice, parts: Sequence[Part], width: int = 120) -> list[str]:
    """The recommendation: a line to paste, what it rests on, folded at a width, and the evidence part by part."""
    share = f"{100 * judge.margin:g} %"
    point, evidence = choice.point, choice.evidence
    if point is None or evidence is None:
        if not choice.candidates:
            return ["No such scheme was measured; see the sweep's points."]
        if all(judge.verdict(p, part).verdict == NO_SIGNAL for p in judge.laboratory.points[:1] for part in parts):
            return ["Nothing can be said: the teacher is not shown to be above chance on any of these."]
        return [f"None of {choice.candidates} schemes will do: each is shown to lose more than {share} somewhere."]
    of = f"{choice.tested} of {choice.candidates} schemes were tested, the least KL to the teacher first"
    if choice.shown:
        line = f"scheme: {point.scheme}"
        text = f"Shown to lose less than {share} on each of these by {point.label}; {of}."
    else:
        line = f"scheme: {point.scheme}   # NOT SHOWN to lose less than {share}"
        text = (
            "No scheme is shown to lose less. This one, by "
            f"{point.label}, has the fewest bits of those that are not shown to lose more"
            + (f"; {_needs(evidence.more)}." if evidence.more is not None else ".")
        )
    with_it = f"With it: calibrate.method: {point.method}, calibrate.rotation: {point.rotation}"
    header = ["on", "items", "teacher", "loss", "verdict"]
    return [
        line,
        *textwrap.wrap(text, width),
        with_it,
        *table([header, *([part.label, *_evidence(judge.verdict(point, part))] for part in parts)]).split("\n"),
    ]


def _evidence(verdict: Verdict) -> list[str]:
    return [f"{verdict.items:,}", f"{100 * verdict.teacher:.1f} %", loss(verdict), verdict_text(verdict)]


def _row(line: Line) -> list[str]:
    name = [line.group, line.part or "all of these", TITLES[line.kind]]
    if not line.part and line.no_signal and not line.failed and line.enough is None:
        return [*name, NOTHING, NOTHING, NOTHING, "no signal: the teacher is not shown to be above chance on any"]
    if line.part and line.no_signal:
        items = f"{line.stopped_verdict.items:,}" if line.stopped_verdict else NOTHING
        return [*name, NOTHING, NOTHING, items, "no signal: the teacher is not shown to be above chance"]
    enough = NOTHING if line.enough is None else _how(line.enough, line.kind)
    there = NOTHING if line.verdict is None else loss(line.verdict)
    if line.probability is not None:
        there += f" (probability {loss(line.probability)}, {line.probability.verdict})"
    judged = line.verdict or line.stopped_verdict
    return [*name, enough, there, f"{judged.items:,}" if judged else NOTHING, _next(line)]


def _how(point: Point, kind: str) -> str:
    """Bits and method."""
    return f"{written(point, kind)}, {point.method}" + ("" if point.rotation in ("none", "") else " rotated")


def _next(line: Line) -> str:
    """What ended a line."""
    if line.stopped is None:
        return "none was measured"
    step = written(line.stopped, line.kind)
    if line.stopped_verdict is not None:
        return f"{step}: {verdict_text(line.stopped_verdict)} ({loss(line.stopped_verdict)})"
    silent = f"; no signal of {', '.join(line.no_signal)}" if line.no_signal else ""
    return f"{step}: {', '.join(f'{name} {verdict}' for name, verdict in line.failed.items())}{silent}"


def _needs(more: int | None) -> str:
    if more is None:
        return "more items would not help"
    return f"needs about {rounded_up(more):,} more items" if more else "items enough, so something is lost"
