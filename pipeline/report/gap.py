"""The gap that round to nearest opens in log-perplexity, and the share of it that a variant wins back.

Window by window, on the same text for all: (rtn - variant) / (rtn - teacher), each a mean over the windows, with its
95 % interval from the windows (`pipeline.statistics.paired`). A gap inside its own error has no share worth telling.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.statistics import paired

MEASURE = "log_perplexity"
FLOAT, NEAREST = "teacher", "rtn"


def won_back(documents: Mapping[str, pd.DataFrame], variants: Sequence[str]) -> dict[str, float]:
    """The gap and the variants' shares, flat: gap.rtn (nats a token), gap.rtn.stderr, gap.rtn.p (that it is chance),
    and, where the gap is above 0 at 5 %, recovered.{variant} with recovered.{variant}.low and .high.

    Args:
        documents: of the teacher, rtn and each variant, as `Items.documents`: measure, document, hash and value.

    Raises:
        ValueError: they were not measured on the same windows.
    """
    names = [FLOAT, NEAREST, *variants]
    losses = {name: _losses(documents[name]) for name in names}
    if apart := [name for name in names if not losses[name].index.equals(losses[FLOAT].index)]:
        raise ValueError(f"perplexity was not measured on the same windows: {', '.join(apart)} against {FLOAT}")
    values = {name: losses[name].to_numpy(dtype=float) for name in names}
    gap = values[NEAREST] - values[FLOAT]
    _, _, p = paired.bootstrap(gap)
    metrics = {f"gap.{NEAREST}": float(gap.mean()), f"gap.{NEAREST}.p": p}
    if len(gap) > 1:
        metrics[f"gap.{NEAREST}.stderr"] = float(gap.std(ddof=1)) / len(gap) ** 0.5
    if gap.mean() <= 0 or p >= paired.LEVEL:
        return metrics
    for name in variants:
        part: np.ndarray = values[NEAREST] - values[name]
        low, high = paired.share(part, gap)
        metrics |= {f"recovered.{name}": float(part.mean() / gap.mean())}
        metrics |= {f"recovered.{name}.low": low, f"recovered.{name}.high": high}
    return metrics


def significant(summary: Mapping[str, float]) -> bool:
    """Whether a summary has shares of a gap that is beyond its error."""
    return any(name.startswith("recovered.") for name in summary)


def _losses(documents: pd.DataFrame) -> pd.Series:
    """The windows' losses by their place and content, in the order of their places."""
    mine = documents[documents["measure"] == MEASURE]
    return mine.set_index(["document", "hash"])["value"].sort_index()
