"""Settings of a sweep compared: mean and spread over seeds, and paired differences from a baseline.

Two settings that run with the same seed share what the seed decides (the order of the data), so their difference varies
less than either. It is taken point by point, and its mean tested by Student's t-interval: with n pairs of standard
deviation s, mean ± t(n - 1) s / sqrt(n) at 95 %. For two pairs t is 12.7, so little can be said from them, and nothing
from one. Each interval stands for itself: among twenty settings that are no different, one is expected to look so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

OVER_ALL = "over all"  # values of the other knobs


def compare(
    points: pd.DataFrame, knobs: Sequence[str], seed: str, metrics: Sequence[str], baseline: Mapping[str, str]
) -> pd.DataFrame:
    """A row a setting and metric, in the points' order; then, where the baseline leaves swept knobs open, one for each
    value of those that it names, over all values of the open ones.

    Args:
        points: a row a point, with its `setting` (a label), its knobs as text, its seed, and its metrics; one that is
            not finished has none, and does not count.
        baseline: some of the knobs, with the values of the setting that the others are compared with. A point's
            partner has these, and agrees with it in all other knobs and in the seed. Empty: nothing is compared.

    Returns:
        setting; `compared`, its values of the baseline's knobs, or of all without one; `others`, those of the other
        knobs, or OVER_ALL; metric, n (points), mean, std (over them; NaN for one), then of the pairs: their number,
        mean difference, its stderr and interval low to high (NaN where there are too few), and a verdict: `baseline`
        for the baseline itself, else `above`, `below` (the interval does not hold 0), `noise` (it does), or nothing.
        Differences of a perplexity are those of its natural logarithm.
    """
    done = [
        {str(key): value for key, value in row.items()}
        for row in points.dropna(subset=list(metrics)).to_dict("records")
    ]
    others = [knob for knob in knobs if knob not in baseline]
    partners = {tuple(row[knob] for knob in [seed, *others]): row for row in done if _is(row, baseline)}
    compared_rows = []
    for setting, mine in _groups(done, knobs, baseline).items():
        is_baseline = bool(baseline) and _is(mine[0], baseline)
        against = [] if is_baseline or not baseline else mine
        pairs = [(row, partners.get(tuple(row[knob] for knob in [seed, *others]))) for row in against]
        for metric in metrics:
            values = pd.Series([row[metric] for row in mine])
            apart = [_scale(one[metric], metric) - _scale(other[metric], metric) for one, other in pairs if other]
            row: dict[str, Any] = dict(zip(("setting", "compared", "others"), setting, strict=True))
            row |= {"metric": metric, "n": len(mine), "mean": values.mean(), "std": values.std(ddof=1)}
            row |= difference(apart)
            compared_rows.append({**row, "verdict": "baseline"} if is_baseline else row)
    return pd.DataFrame(compared_rows)


def difference(values: Sequence[float]) -> dict[str, float | str]:
    """Number, mean, standard error, 95 % t-interval and verdict of paired differences; NaN for what they do not say."""
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan
    reach = stats.t.ppf(0.975, n - 1) * error if n > 1 else math.nan
    verdict = "" if n < 2 else "above" if mean - reach > 0 else "below" if mean + reach < 0 else "noise"
    return {
        "pairs": n,
        "difference": mean,
        "stderr": error,
        "low": mean - reach,
        "high": mean + reach,
        "verdict": verdict,
    }


def is_perplexity(metric: str) -> bool:
    """Whether a metric is a perplexity, whose differences are taken in its logarithm: nats a token."""
    return metric.rpartition(".")[2] == "perplexity"


def rows(table: pd.DataFrame) -> list[list[str]]:
    """What `compare` gives as a table to read, a header first: a row a setting, two columns a metric."""
    metrics = [*dict.fromkeys(table["metric"])]
    compared = bool((table["verdict"] == "baseline").any())
    header = ["setting", "points"]
    for metric in metrics:
        logged = "log " if is_perplexity(metric) else ""
        header += [metric, f"difference, {logged}{metric}"] if compared else [metric]
    table_rows = [header]
    for setting, mine in table.groupby("setting", sort=False):
        cells = [str(setting), str(mine["n"].iloc[0])]
        for _, row in mine.iterrows():
            spread = "" if math.isnan(row["std"]) else f" ± {row['std']:.2g}"
            cells += [f"{row['mean']:.5g}{spread}", *([_difference_cell(row)] if compared else [])]
        table_rows.append(cells)
    return table_rows


def note(table: pd.DataFrame, done: int, points: int) -> str:
    """What the table's signs mean, and how much of the sweep is in it."""
    text = f"{done} of {points} points are finished. After a mean, ± is the standard deviation over its points."
    if not (table["verdict"] == "baseline").any():
        return text
    return (
        f"{text} Differences are from the baseline, paired by seed and by the other knobs. After one, ± is its "
        "standard error, in brackets is the number of pairs, and * marks those that exceed the noise: their 95 % "
        't-interval does not hold 0. "Over all" takes the pairs of all values of the other knobs together. One pair '
        "says nothing of the noise. It is the noise of the seeds alone, as all points are scored on the same text and "
        "items. Each interval stands for itself: of twenty settings that are no different, one is expected to bear a *."
    )


def markdown(name: str, table: pd.DataFrame, done: int, points: int) -> str:
    """table.md of a sweep."""
    header, *body = rows(table)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"# {name}\n\n{text}\n\n{note(table, done, points)}\n"


def _difference_cell(row: pd.Series) -> str:
    if row["verdict"] == "baseline":
        return "baseline"
    if not row["pairs"]:
        return "-"
    if row["pairs"] == 1:
        return f"{row['difference']:+.3g} (1)"
    star = " *" if row["verdict"] in ("above", "below") else ""
    return f"{row['difference']:+.3g} ± {row['stderr']:.2g} ({row['pairs']}){star}"


def _groups(
    rows: Sequence[dict[str, Any]], knobs: Sequence[str], baseline: Mapping[str, str]
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The rows by setting, compared and others, as `compare` returns them."""
    named = [knob for knob in knobs if knob in baseline] or [*knobs]
    others = [knob for knob in knobs if knob not in named]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["setting"], _value(row, named), _text(row, others)), []).append(row)
    if len(groups) > len({_text(row, named) for row in rows}):
        for row in rows:
            label = f"{_text(row, named)}, {OVER_ALL}"
            groups.setdefault((label, _value(row, named), OVER_ALL), []).append(row)
    return groups


def _value(row: Mapping[str, Any], knobs: Sequence[str]) -> str:
    """A row's values of some knobs, with their names where they are several."""
    return str(row[knobs[0]]) if len(knobs) == 1 else _text(row, knobs)


def _text(row: Mapping[str, Any], knobs: Sequence[str]) -> str:
    return " ".join(f"{knob.rpartition('.')[2]}={row[knob]}" for knob in knobs)


def _is(row: Mapping[str, Any], baseline: Mapping[str, str]) -> bool:
    return all(row[knob] == value for knob, value in baseline.items())


def _scale(value: float, metric: str) -> float:
    return math.log(value) if is_perplexity(metric) else value
