"""The answers of a sweep's points, item by item, in one table: answers.parquet beside points.csv.

A row is an item that a point answered: point (the experiment's name), scheme and method and rotation as params.yaml has
them, bits of weights, inputs and KV cache (0: float), then the columns of the stage's own answers.parquet. The model
that all are compared with is the point `teacher`, once. The teacher's answers in conversations are items, too, those of
one conversation a cluster: right_probability is the share of an answer's tokens that the point finds likeliest as well,
and correct an answer of which it finds all.

The file grows with points times items, so it is in neither Git nor DVC; lineage.json has its sha256, and
`--only-report` writes it anew from experiments that are in the cache.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem

from pipeline.flow import knobs
from pipeline.flow.definition import Sweep
from pipeline.knobs import long_scheme, yaml_1_2
from pipeline.report.sweep_files import ANSWERS, OF_POINT, REFERENCE, TOKENS

KNOBS = "params.yaml"
DIALOGUE, CONVERSATIONS = "dialogue", "conversations"  # their text among the tokens, and task and part of their items


def read(files: DVCFileSystem, sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a commit's point answered, with the columns that tell of the point, and what the reference answered.

    Raises:
        FileNotFoundError: they are not in the cache any more.
    """
    tree = yaml_1_2.parse(files.read_text(KNOBS))
    own, reference = (_table(files, folder) for folder in (sweep.items, sweep.reference))
    return _with(own, _told(tree)), _with(reference, dict.fromkeys(OF_POINT[1:4], "") | dict.fromkeys(OF_POINT[4:], 0))


def recorded(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """The answers that the sweep's file holds, by the point's name, the reference's among them; empty without a file.

    Raises:
        ValueError: the file is no such table.
    """
    file = sweep.folder / ANSWERS
    if not file.is_file():
        return {}
    try:
        table = pd.read_parquet(file)
        points = table.groupby("point", sort=False)
        return {str(name): part.drop(columns="point").reset_index(drop=True) for name, part in points}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it") from None


def write(folder: Path, answers: Mapping[str, pd.DataFrame], reference: pd.DataFrame) -> None:
    """Write the table, whole or not at all: the reference first, then each point by its name."""
    named = [table.assign(point=name) for name, table in {REFERENCE: reference, **answers}.items()]
    table = pd.concat(named, ignore_index=True)
    table = table[["point", *table.columns.drop("point")]]
    part = folder / f".{ANSWERS}.part"
    table.to_parquet(part, index=False, compression="zstd")
    part.replace(folder / ANSWERS)


def _table(files: DVCFileSystem, folder: str) -> pd.DataFrame:
    answers, tokens = (_parquet(files, f"{folder}/{name}") for name in (ANSWERS, TOKENS))
    return pd.concat([answers, _of_conversations(tokens)], ignore_index=True)


def _parquet(files: DVCFileSystem, path: str) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(files.read_bytes(path)))


def _of_conversations(tokens: pd.DataFrame) -> pd.DataFrame:
    """The teacher's answers in conversations as rows of answers.parquet."""
    said = tokens[(tokens["text"] == DIALOGUE) & (tokens["turn"] > 0)]
    answers = said.groupby(["document", "turn"])["same"].agg(["mean", "all"]).reset_index()
    places = answers["document"].astype(str) + ":" + answers["turn"].astype(str)
    return pd.DataFrame(
        {
            "task": CONVERSATIONS,
            "item": range(len(answers)),
            "hash": places,
            "prediction": -1,
            "correct": answers["all"],
            "log_likelihoods": [[]] * len(answers),
            "group": DIALOGUE,
            "part": CONVERSATIONS,
            "cluster": answers["document"].astype("int64"),
            "level": "turn " + answers["turn"].astype(str),
            "answer": -1,
            "probabilities": [[]] * len(answers),
            "right_probability": answers["mean"],
        }
    )


def _told(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that tell of a point, by its params."""
    value, calibrate = tree["scheme"], tree["calibrate"]
    scheme = long_scheme.of(value)
    bits: Sequence[int] = (scheme.weights.bits, scheme.activations.bits, scheme.kv_cache.bits)
    told = (knobs.text(value), str(calibrate["method"]), str(calibrate["rotation"]), *bits)
    return dict(zip(OF_POINT[1:], told, strict=True))


def _with(table: pd.DataFrame, told: Mapping[str, Any]) -> pd.DataFrame:
    """The table behind columns that are the same in all its rows."""
    columns = table.columns
    return table.assign(**told)[[*told, *columns]]
