"""Small made tables of answers, of which it is known what they show."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.knobs.long_scheme import of
from pipeline.recommend.laboratory import Laboratory, of_table

Rights = Mapping[str, np.ndarray]  # of "group/part", whether each item is right
N = 1500
DOWN = {
    "weights": {"bits": 8, "symmetric": True, "group": 0},
    "activations": {"bits": 8, "symmetric": True, "dynamic": False, "observer": "minmax", "percentile": 99.99},
    "kv_cache": {"bits": 0, "symmetric": True, "group": 0},
}


def first(count: int, of: int = N) -> np.ndarray:
    """Items of which the first so many are right."""
    return np.arange(of) < count


def answered(
    rights: Rights, choices: int = 4, likelihood: float = 1.0, levels: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Item i's right choice is i modulo the choices; the chosen one has `likelihood` nats more than the others."""
    tables = []
    for name, right in rights.items():
        group, part = name.split("/")
        items = np.arange(len(right))
        answer = items % choices
        prediction = np.where(right, answer, (answer + 1) % choices)
        chosen = np.exp(likelihood) / (np.exp(likelihood) + choices - 1)
        tables.append(
            pd.DataFrame(
                {
                    "task": f"{part} task",
                    "item": items,
                    "hash": [f"{part}{i}" for i in items],
                    "prediction": prediction,
                    "correct": right,
                    "log_likelihoods": [-9 + likelihood * (np.arange(choices) == p) for p in prediction],
                    "group": group,
                    "part": part,
                    "cluster": items,
                    "level": (levels or {}).get(name, [""] * len(right)),
                    "answer": answer,
                    "right_probability": np.where(right, chosen, (1 - chosen) / (choices - 1)),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def told(scheme: str, method: str, rotation: str = "none") -> dict[str, Any]:
    """The columns that tell of a point; its name is scheme and method."""
    grids = of(json.loads(scheme) if scheme.startswith("{") else scheme)
    bits = (grids.weights.bits, grids.activations.bits, grids.kv_cache.bits)
    name = f"{scheme} {method}" + ("" if rotation == "none" else f" {rotation}")
    return {"point": name, "scheme": scheme, "method": method, "rotation": rotation} | dict(
        zip(("bits_w", "bits_a", "bits_kv"), bits, strict=True)
    )


def table(teacher: Rights, points: Mapping[Any, Rights], **options: Any) -> pd.DataFrame:
    """The teacher's answers and each point's, by a scheme written short or (scheme, method); what a point does not have
    it answers as the teacher."""
    none = {"point": "teacher", "scheme": "", "method": "", "rotation": "", "bits_w": 0, "bits_a": 0, "bits_kv": 0}
    tables = [answered(teacher, **options).assign(**none)]
    for key, rights in points.items():
        which = (key, "rtn") if isinstance(key, str) else key
        tables.append(answered({**teacher, **rights}, **options).assign(**told(*which)))
    return pd.concat(tables, ignore_index=True)


def laboratory(
    teacher: Rights, points: Mapping[Any, Rights], kl: Mapping[str, float] | None = None, **options: Any
) -> Laboratory:
    """The same, read."""
    return of_table(table(teacher, points, **options), kl)
