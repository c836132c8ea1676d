"""What the page says in words beside its tables and pictures."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd


def protocol(windows: int, window: int, text: str, text_sha256: str, dtype: str, held_out: int) -> str:
    """How the scores were measured; `text` and `dtype` by the names of their knobs."""
    name = "CPython's pydoc_data.topics" if text == "pydoc" else text
    return (
        f"Perplexity: {windows} windows of {window} tokens from the start of {name} (sha256 "
        f"{text_sha256[:16]}), each alone, no BOS, {dtype}; its error is over windows. Gap won back: "
        f"share of RTN's loss in log-perplexity, in brackets its 95 % interval, from the windows in pairs. "
        f"KL (nats a token) and top-1 agreement are against the teacher on "
        f"{held_out} held-out sequences of its own. Accuracy: mean over the tasks below."
    )


def benchmark(source: str, folder: str, limit: int, made: int = 0) -> str:
    """Which items accuracy is over; `source` by the name of its knob, a limit of 0 is none; made: tasks by code."""
    where = "the data sets of lm-eval's own tasks" if source == "hub" else f"the JSON lines files in {folder}"
    most = f", at most {limit} items a task" if limit else ""
    also = f"; the items of {made} task{'s' if made > 1 else ''} are made by code" if made else ""
    return f"lm-eval {version('lm-eval')}, {where}{most}{also}. Bars are one standard error each way."


def sizes(shown: int, elsewhere: int) -> str:
    """What the picture of sizes shows, and how many points of sweeps it leaves out."""
    told = "The nearer to the corner below on the left, the better; weights, embedding and head are all counted."
    if not shown:
        told += " The sweep sweeps/sizes.yaml adds other formats of about these sizes."
    if elsewhere:
        told += (
            f" {elsewhere} points of sweeps are left out: their KL was measured on another text, or it is not known."
        )
    return told


def training(log: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """What the training was, from its log and the student's manifest."""
    return (
        f"{len(log)} steps over {int(log['tokens'].iloc[-1]):,} predicted tokens, freeze policy {facts['freeze']} "
        f"({len(facts['frozen'])} linears keep their calibrated codes), {facts['scale']} scales. KL fell from "
        f"{log['kl'].head(5).mean():.3f} (mean of the first 5 steps) to {log['kl'].tail(5).mean():.3f} (of the last 5)."
    )


def errors(errors: pd.DataFrame) -> list[list[str]]:
    """SQNR in dB by role, means over the layers, with a header."""
    columns = {
        "output_sqnr": "output",
        "rtn_output_sqnr": "output, RTN",
        "weight_sqnr": "weight",
        "rtn_weight_sqnr": "weight, RTN",
    }
    means = errors.groupby("role", sort=False)[list(columns)].mean()
    return [
        ["role", *columns.values()],
        *([str(role), *(f"{x:.1f}" for x in row)] for role, row in zip(means.index, means.to_numpy(), strict=True)),
    ]
