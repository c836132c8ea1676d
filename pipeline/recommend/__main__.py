"""`python -m pipeline.recommend`: how few bits are enough, for which tasks, from the laboratory's answers."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pipeline.recommend import choice, claims, laboratory, least, schemes_page, told
from pipeline.recommend.judged import Judge
from pipeline.statistics.non_inferiority import MARGIN
from pipeline.statistics.paired import LEVEL
from pipeline.statistics.sample_size import POWER, refuse

PAPER = '"Evaluating Quantized Large Language Models" (2402.18158)'
SIGNALS = Path("data/signals/signals.parquet")


def main() -> None:
    """Run the command line. A ValueError is the user's, and shown as one line."""
    args = _arguments(sys.argv[1:])
    try:
        refuse(args.margin, LEVEL, POWER)
        names = [name.strip() for name in args.tasks.split(",") if name.strip()]
        file = laboratory.where(args.answers)
        judge = Judge(laboratory.load(file), args.margin)
        print("\n".join(recommendation(judge, names, args.kind)))
        rows = claims.rows(claims.judged(judge, claims.signals(SIGNALS))) if args.claims else []
        if rows:
            print(f"\nClaims of {PAPER}\n\n{told.blocks(rows, shutil.get_terminal_size().columns)}")
        if args.page:
            schemes_page.write(judge, file, args.page, rows)
            print(f"\nevery point: {args.page}")
    except ValueError as error:
        sys.exit(f"recommend: {error}")


def recommendation(judge: Judge, names: Sequence[str], kind: str | None) -> list[str]:
    """The table of least bits, and the one scheme.

    Args:
        names: of groups, sub-tasks or tasks; none: all. kind: of `least.KINDS`; None: all.

    Raises:
        ValueError: a name is unknown, or a part has too few items.
    """
    parts = judge.laboratory.named(names)
    lines = least.lines(judge, parts, [kind] if kind else tuple(least.KINDS))
    chosen = choice.choose(judge, parts, kind)
    points = len(judge.laboratory.points)
    head = f"Within {100 * judge.margin:g} % of the teacher, {len(judge.laboratory.items):,} items, {points} points"
    of = ", ".join(names) or "all that was asked"
    width = shutil.get_terminal_size().columns
    return [
        head,
        "",
        told.by_part(told.rows(lines), width),
        "",
        textwrap.fill(told.NOTE, width),
        "",
        f"For {of}:",
        *told.choice_lines(judge, chosen, parts, width),
    ]


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.recommend",
        description="How few bits are shown to be enough, for which tasks, from the laboratory's answers.",
        epilog="docs/laboratory.md says how to read it.",
    )
    parser.add_argument(
        "--answers", type=Path, metavar="FILE_OR_FOLDER", help=f"of a laboratory ({laboratory.FOLDERS[0]})"
    )
    parser.add_argument("--margin", type=float, default=MARGIN, help=f"share of the teacher's score ({MARGIN})")
    parser.add_argument("--tasks", default="", metavar="NAMES", help="groups, sub-tasks or tasks, with commas (all)")
    parser.add_argument("--kind", choices=[*least.KINDS], help="what is quantized (weights, inputs and KV cache)")
    parser.add_argument("--claims", action="store_true", help="the paper's claims besides, and whether they hold here")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write every point's scores, and the claims, there: docs/schemes.md"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
