"""The claims of "Evaluating Quantized Large Language Models" (2402.18158), held against the laboratory.

A claim is a function and a line of CLAIMS. Each is tested at 5 %, for itself; what lacks its points, its items or the
signals is "not measured".
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.recommend import claim_points, contrasts, told
from pipeline.recommend.judged import Judge
from pipeline.recommend.laboratory import Part
from pipeline.signals.table import FLOAT, by_layer, layers
from pipeline.statistics.clustered import Mean
from pipeline.statistics.corrections import holm
from pipeline.statistics.non_inferiority import BEYOND, NO_SIGNAL, WITHIN
from pipeline.statistics.paired import LEVEL

HOLDS, DOES_NOT, NOT_SHOWN, NOT_MEASURED = "holds", "does not", "not shown", "not measured"
BASIC = "basic"
HEAVY = ("multi-step", "self-calibration")
COLLAPSED = 0.5  # of what the teacher has above chance: less than this is left where a model has collapsed


@dataclass(frozen=True)
class Outcome:
    """What is found of a claim: our figures with their errors, and HOLDS, DOES_NOT, NOT_SHOWN or NOT_MEASURED."""

    ours: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A claim, the paper's figures for it, and how it is tested."""

    text: str
    paper: str
    test: Callable[[Judge, pd.DataFrame | None], Outcome]


def judged(judge: Judge, signals: pd.DataFrame | None) -> list[tuple[Claim, Outcome]]:
    """Each claim with what is found.

    Args:
        signals: the table of analyze, or None where there is none.
    """
    return [(claim, claim.test(judge, signals)) for claim in CLAIMS]


def rows(outcomes: Iterable[tuple[Claim, Outcome]]) -> list[list[str]]:
    """A header and a row a claim."""
    lines = [[claim.text, claim.paper, outcome.ours, outcome.verdict] for claim, outcome in outcomes]
    return [["the paper's claim", "its figures", "ours", "verdict"], *lines]


def signals(file: Path) -> pd.DataFrame | None:
    """The table of analyze, where there is one."""
    return pd.read_parquet(file) if file.is_file() else None


def more_for_multi_step(judge: Judge, _: pd.DataFrame | None) -> Outcome:
    """Of weights of 4 bits by round to nearest."""
    parts = {part.name: part for part in judge.laboratory.parts}
    point, basic = claim_points.plain(judge, (4, 0, 0), "rtn"), claim_points.whole(judge, BASIC)
    if point is None or basic is None or not {*HEAVY} <= {*parts}:
        return _absent("W4 by rtn, and items of basic, multi-step and self-calibration")
    silent = [name for name in HEAVY if judge.verdict(point, parts[name]).verdict == NO_SIGNAL]
    if silent:
        return Outcome(f"the teacher is not shown to be above chance: {', '.join(silent)}", NOT_SHOWN)
    apart = {name: contrasts.more_lost(judge.laboratory, point, parts[name], basic) for name in HEAVY}
    ours = ", ".join(f"{name} {_points(more)}" for name, more in apart.items())
    return Outcome(f"loss at W4 above basic's: {ours}", _all(_sign(more) for more in apart.values()))


def four_bits_and_not_three(judge: Judge, _: pd.DataFrame | None) -> Outcome:
    """Of weights by round to nearest, on the basic tasks."""
    pair, basic = claim_points.alike(judge, ((4, 0, 0), (3, 0, 0)), ("rtn", "rtn")), claim_points.whole(judge, BASIC)
    if pair is None or basic is None:
        return _absent("W4 and W3 by rtn, and items of basic")
    four, three = (judge.verdict(point, basic) for point in pair)
    ours = f"{pair[0].label} {told.loss(four)}, {pair[1].label} {told.loss(three)}"
    if (four.verdict, three.verdict) == (WITHIN, BEYOND):
        return Outcome(ours, HOLDS)
    return Outcome(ours, DOES_NOT if four.verdict == BEYOND or three.verdict == WITHIN else NOT_SHOWN)


def awq_at_three_bits(judge: Judge, _: pd.DataFrame | None) -> Outcome:
    """Against round to nearest, with the same grids, on all parts with a signal."""
    pairs = [claim_points.alike(judge, ((bits, 0, 0),) * 2, ("awq", "rtn")) for bits in (3, 2)]
    rows_ = claim_points.with_signal(judge)
    if pairs[0] is None or pairs[1] is None or not len(rows_):
        return _absent("W3 and W2, by awq and by rtn")
    three, two = (contrasts.gain(judge.laboratory, *pair, rows_) for pair in pairs if pair)
    left = contrasts.kept_above(judge.laboratory, pairs[1][0], COLLAPSED, rows_)
    ours = f"gain over rtn: {pairs[0][0].label} {_points(three)}, {pairs[1][0].label} {_points(two)}"
    return Outcome(ours, _all([_sign(three), _sign(left, -1)]))


def smoothquant_at_four_bits(judge: Judge, _: pd.DataFrame | None) -> Outcome:
    """Against round to nearest, at W4A4, on all parts with a signal."""
    pair, rows_ = claim_points.alike(judge, ((4, 4, 0),) * 2, ("smoothquant", "rtn")), claim_points.with_signal(judge)
    if pair is None or not len(rows_):
        return _absent("W4A4, by smoothquant and by rtn")
    more = contrasts.gain(judge.laboratory, *pair, rows_)
    left = judge.verdict(pair[0], Part("all", "with a signal", rows_))
    saved = {BEYOND: HOLDS, WITHIN: DOES_NOT}.get(left.verdict, NOT_SHOWN)
    return Outcome(f"gain over rtn {_points(more)}; what it still loses {told.loss(left)}", _all([_sign(more), saved]))


def cache_by_length(judge: Judge, _: pd.DataFrame | None) -> Outcome:
    """Of long texts by their lines; over all lengths, p-values are corrected by Holm."""
    four, eight = (claim_points.plain(judge, (8, 0, bits), "rtn") for bits in (4, 8))
    parts = claim_points.by_length(judge)
    if four is None or eight is None or len(parts) < 2:
        return _absent("W8KV8 and W8KV4, and items of long in two lengths at least")
    heard = [part for part in parts if judge.verdict(four, part).verdict != NO_SIGNAL]
    if len(heard) < 2:
        return Outcome("the teacher is above chance at one length at most", NOT_SHOWN)
    corrected = holm([judge.verdict(four, part).p_beyond for part in heard])
    hurt = [part for part, p in zip(heard, corrected, strict=True) if p < LEVEL]
    apart = [part for part in hurt if judge.verdict(eight, part).verdict == WITHIN]
    figures = (
        f"{part.name}: KV4 {told.loss(judge.verdict(four, part))}, KV8 {told.loss(judge.verdict(eight, part))}"
        for part in (heard[0], heard[-1])
    )
    fine = judge.verdict(four, heard[-1]).verdict == WITHIN
    return Outcome("; ".join(figures), HOLDS if apart else DOES_NOT if fine else NOT_SHOWN)


def dynamic_down(judge: Judge, _: pd.DataFrame | None) -> Outcome:
    """INT8 inputs: a scale a token for down_proj alone, against a scale a token for all; on all parts with a signal."""
    mine = [point for point in judge.laboratory.points if point.bits == (8, 8, 0) and point.method == "rtn"]
    static = [point for point in mine if not point.grids.activations.dynamic]
    down = next((point for point in static if [o.match for o in point.grids.overrides] == ["down_proj"]), None)
    none = next((point for point in static if not point.grids.overrides), None)
    every, rows_ = claim_points.plain(judge, (8, 8, 0), "rtn"), claim_points.with_signal(judge)
    if down is None or none is None or every is None or not len(rows_):
        return _absent("W8A8 by rtn: dynamic, static, and static but for down_proj")
    part = Part("all", "with a signal", rows_)
    near = judge.between(every, down, part)
    losses = ", ".join(
        f"{name} {told.loss(judge.verdict(point, part))}"
        for name, point in {"static": none, "down_proj dynamic": down, "all dynamic": every}.items()
    )
    verdict = {WITHIN: HOLDS, BEYOND: DOES_NOT}.get(near.verdict, NOT_SHOWN)
    return Outcome(f"{losses}; down_proj against all {told.loss(near)}", verdict)


def kurtosis_tells(_: Judge, signals: pd.DataFrame | None) -> Outcome:
    """Rank correlation over layers: mean kurtosis of the float weights, and the KL of quantizing the layer alone."""
    variants = [] if signals is None else [v for v in ("rtn", "ptq") if "one_layer_kl" in layers(signals, v)]
    if signals is None or not variants:
        return _absent("the signals of analyze, with sensitivity_sequences")
    cost = layers(signals, variants[0]).set_index("layer")["one_layer_kl"]
    ranks = {}
    for tensor, name in (("weight", "weights"), ("input", "inputs")):
        shape = by_layer(signals, FLOAT, tensor, "kurtosis").set_index("layer").mean(axis=1)
        both = pd.concat({"cost": cost, "shape": shape}, axis=1).dropna()
        if len(both) < 5:
            return _absent("the signals of five layers at least")
        ranks[name] = contrasts.spearman(both["shape"].to_numpy(), both["cost"].to_numpy())
    ours = ", ".join(f"{name} {rank:.2f} ({low:.2f} to {high:.2f})" for name, (rank, low, high) in ranks.items())
    low, high = ranks["weights"][1:]
    return Outcome(
        f"rank correlation with a layer's KL, {variants[0]}: {ours}",
        HOLDS if low > 0 else DOES_NOT if high < 0 else NOT_SHOWN,
    )


CLAIMS = (
    Claim(
        "multi-step reasoning and self-calibration lose more than basic tasks",
        "LLaMA2-7B GSM8K 26.76, W4 25.17 (-5.9 %); MMLU 46.69, W4 45.45 (-2.7 %); W8 or more is advised for them",
        more_for_multi_step,
    ),
    Claim(
        "W4 is within 2 %, W3 is not",
        "LLaMA2-7B MMLU 46.69, W4 45.45, W3 38.52; OPT-125M LAMBADA 39.63, 38.70, 18.61",
        four_bits_and_not_three,
    ),
    Claim("AWQ helps W3 and does not save W2", "W3 much better, W2 still collapses", awq_at_three_bits),
    Claim(
        "SmoothQuant helps W4A4 and does not save it",
        "won back in part, short of FP16 (table 5)",
        smoothquant_at_four_bits,
    ),
    Claim("KV4 hurts past some length, KV8 does not", "KV4 below 4K tokens, KV8 from there on", cache_by_length),
    Claim(
        "static inputs with down_proj alone dynamic come near all dynamic", "perplexity near (table 12)", dynamic_down
    ),
    Claim("kurtosis tells where bits are needed", "mixed precision by layer suggested (tables 4, 10)", kurtosis_tells),
)


def _absent(what: str) -> Outcome:
    return Outcome(f"needs {what}", NOT_MEASURED)


def _sign(apart: Mean, side: int = 1) -> str:
    """Whether a mean is shown to be above 0, or below, as side has it."""
    above, below = (apart.above(), apart.below())[::side]
    return HOLDS if above < LEVEL else DOES_NOT if below < LEVEL else NOT_SHOWN


def _all(verdicts: Iterable[str]) -> str:
    """A claim of several parts holds where all do, and does not where one does not."""
    kinds = {*verdicts}
    return DOES_NOT if DOES_NOT in kinds else HOLDS if kinds == {HOLDS} else NOT_SHOWN


def _points(apart: Mean) -> str:
    return f"{100 * apart.value:+z.1f} ± {100 * apart.error:.1f} points"
