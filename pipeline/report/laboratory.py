"""The report's section on the laboratory: which bits are enough, the paper's claims, and a picture of loss by bits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.artifacts import contract
from pipeline.recommend import choice, claims, least, told
from pipeline.recommend import laboratory as laboratories
from pipeline.recommend.judged import Judge
from pipeline.report import overlays, plots
from pipeline.report.sweep_files import ANSWERS, SweepFiles

NAMES = tuple(folder.name for folder in laboratories.FOLDERS)


def section(sweeps: Sequence[SweepFiles], signals: pd.DataFrame, margin: float) -> dict[str, Any] | None:
    """For the page's template: name, rows, chosen lines, claims, plot and note; `absent` says why there are none.

    Args:
        sweeps: of the model at hand. signals: the table of analyze. margin: share of the teacher's score.

    Returns:
        None where no laboratory of this model was run.
    """
    mine = {files.folder.name: files for files in sweeps}
    name = next((name for name in NAMES if name in mine), None)
    if name is None:
        return None
    try:
        judge = Judge(_load(mine[name]), margin)
        parts = judge.laboratory.parts
        lines, chosen = least.lines(judge, parts), choice.choose(judge, parts)
        held = claims.rows(claims.judged(judge, signals))
    except ValueError as error:
        return {"name": name, "absent": str(error)}
    return {
        "name": name,
        "absent": "",
        "title": f"Which bits are enough? Within {100 * margin:g} %",
        "rows": told.rows(lines),
        "note": told.NOTE,
        "chosen": told.choice_lines(judge, chosen, parts),
        "plot": picture(judge),
        "claims": held,
    }


def picture(judge: Judge) -> str:
    """Loss of accuracy by bits, a panel a kind, a line a group, with one standard error; the margin dashed."""
    kinds = {kind: along for kind in least.KINDS if (along := least.sequence(judge.laboratory.points, kind))}
    wholes = judge.laboratory.wholes
    colours = overlays.shades([part.group for part in wholes])

    def draw(figure: Figure) -> None:
        axes: Sequence[Axes] = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axis, (kind, along) in zip(axes, kinds.items(), strict=True):
            for part in wholes:
                verdicts = {bits: judge.verdict(point, part) for bits, point in along.items()}
                axis.errorbar(
                    [*verdicts],
                    [100 * verdict.loss for verdict in verdicts.values()],
                    yerr=[100 * verdict.loss_error for verdict in verdicts.values()],
                    color=colours[part.group],
                    label=part.group,
                    marker="o",
                    ms=4,
                    lw=1.2,
                )
            axis.axhline(100 * judge.margin, color="#333333", lw=1, ls="--", label="the margin")
            axis.set(title=told.TITLES[kind], xlabel="bits")
            axis.set_xticks([*along])
            axis.invert_xaxis()
        axes[0].set_ylabel("loss, % of the teacher's score")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    return plots.svg(draw, (10, 3.4)) if kinds else ""


def _load(files: SweepFiles) -> laboratories.Laboratory:
    """Raises: ValueError: the answers are not here, or not those that the sweep wrote, or cannot be compared."""
    file = Path(files.folder) / ANSWERS
    again = f"`python -m pipeline.flow sweep {files.folder}.yaml --only-report` writes it from what is in the cache"
    if not file.is_file():
        raise ValueError(f"{file} is not here, as Git does not track it; {again}")
    if contract.sha256(file) != files.lineage.get("answers"):
        raise ValueError(f"{file} is not what the sweep wrote; {again}")
    return laboratories.load(file)
