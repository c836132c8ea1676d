"""KL to the teacher in detail: its tail, where in a text it is, and how long dialogue stays the teacher's."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.report import score_plots

VARIANTS = {"rtn": "RTN", "ptq": "PTQ", "student": "student"}
QUANTILES = {"median": "median", "p99": "99 %", "p999": "99.9 %", "max": "max"}
TEXTS = {"": "held out", "long.": "long text"}  # by what stands before the names of their scores
AT = re.compile(r"(?P<text>|long\.)kl\.at\.(?P<end>\d+)")


NOTE = (
    "KL in nats a token on the held-out text, as llama.cpp's users know it: what 99 % and 99.9 % of the tokens stay "
    "below. Same top: the share of tokens whose likeliest one is the teacher's. ± is one standard error over texts."
)
ANSWERS_NOTE = (
    "On the teacher's own answers in two turns, which each variant reads and does not write: until it leaves, its own "
    "greedy answer would be the teacher's, token by token."
)
PLOT_NOTE = (
    "Mean KL over the tokens that stand so far behind the beginning. Dashed: one long text that the teacher did not "
    "write, so the lines of two texts are not to be set against each other. Bars are one standard error over texts."
)


def section(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For the page's template: the table, that of the teacher's dialogues, the picture, and a note on each.

    Args:
        scores: of VARIANTS, as `evaluate` writes them.
    """
    return {
        "rows": rows(scores),
        "note": NOTE,
        "dialogues": dialogues(scores),
        "dialogues_note": ANSWERS_NOTE,
        "plot_note": PLOT_NOTE,
        "plot": score_plots.by_position({name: by_position(scores[name]) for name in VARIANTS}),
    }


def rows(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row a variant, a header first: KL on the held-out text, and the share of tokens with the same likeliest one."""
    table = [["", "mean", *QUANTILES.values(), "same top, %"]]
    for variant, name in VARIANTS.items():
        mine = scores[variant]
        quantiles = [f"{mine[f'kl.{quantile}']:.3g}" for quantile in QUANTILES]
        table.append(
            [name, _with_error(mine, "kl", "#.3g", 1), *quantiles, _with_error(mine, "top1", ".1f", 100)],
        )
    return table


def dialogues(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row a variant, a header first: how it follows the teacher's answers; empty where there were none."""
    if not all("dialogue.kl" in scores[variant] for variant in VARIANTS):
        return []
    table = [["", "KL, first answer", "KL, second", "same top, %", "tokens until it leaves", "never leaves, %"]]
    for variant, name in VARIANTS.items():
        mine = scores[variant]
        turns = [
            _with_error(mine, f"dialogue.kl.turn{turn}", "#.3g", 1) if f"dialogue.kl.turn{turn}" in mine else "-"
            for turn in (1, 2)
        ]
        kept = f"{_with_error(mine, 'dialogue.divergence', '.1f', 1)} (median {mine['dialogue.divergence.median']:g})"
        never = f"{100 * mine['dialogue.divergence.never']:.0f}"
        table.append([name, *turns, _with_error(mine, "dialogue.top1", ".1f", 100), kept, never])
    return table


def by_position(scores: Mapping[str, Any]) -> pd.DataFrame:
    """KL by position of one variant: columns text (a name of TEXTS), end (of the band), kl and error (nan: none)."""
    matches = [match for name in scores if (match := AT.fullmatch(name))]
    return pd.DataFrame(
        [
            {
                "text": TEXTS[match["text"]],
                "end": int(match["end"]),
                "kl": scores[match.string],
                "error": scores.get(f"{match.string}.stderr", float("nan")),
            }
            for match in matches
        ],
        columns=["text", "end", "kl", "error"],
    ).sort_values(["text", "end"], ignore_index=True)


def _with_error(scores: Mapping[str, Any], name: str, form: str, factor: float) -> str:
    value = format(factor * scores[name], form)
    error = scores.get(f"{name}.stderr")
    return value if error is None else f"{value} ± {format(factor * error, form.replace('#.3g', '.1g'))}"
