"""The scores that answers come to: accuracy by task, by group and in all, differences of pairs, calibration.

Each has its standard error over clusters (`statistics.clustered`): items that come as one err together. Tasks of the
same items, attacked and clean say, are one family, and their items with one number are one cluster.
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.evaluation import calibration
from pipeline.evaluation.tasks import TASKS, family, in_writing
from pipeline.statistics import clustered


def of_answers(answers: pd.DataFrame) -> dict[str, float]:
    """The scores of a table as `items.answers` makes it; nothing of one without rows.

    Returns:
        accuracy.{task}, the share of right answers by the task's headline metric; balanced.{task}, the mean over right
        answers of it, for tasks that have these unequally often; accuracy.{group}, the mean over its tasks, and
        accuracy, the mean over all of them, both without those that are answered in writing; difference.{task}, of a
        task that compares two levels or stands against another, accuracy of the second level or of the other less its
        own, over the clusters that both have; calibration, as calibration.py has it. Each with .stderr; nan where there
        is one cluster alone.
    """
    scores: dict[str, float] = {}
    moves = []
    for name, part in answers.groupby("task", sort=True):
        task, right = str(name), part["correct"].to_numpy(float)
        keep(scores, f"accuracy.{task}", right.mean(), [_moved(part, (right - right.mean()) / len(right))])
        moves.append(_moved(part, (right - right.mean()) / len(right)))
        if task in TASKS and TASKS[task].balanced:
            keep(scores, f"balanced.{task}", *_balanced(part))
    answers = answers[~answers["task"].map(in_writing).astype(bool)]
    if answers.empty:
        return scores
    tasks = pd.concat(moves)
    for group in [*answers["group"].unique(), ""]:
        names = answers.loc[answers["group"] == group, "task"].unique() if group else answers["task"].unique()
        means = [scores[f"accuracy.{task}"] for task in sorted(names)]
        moved = tasks[tasks["task"].isin(names)]
        shares = [part.assign(moves=part["moves"] / len(names)) for _, part in moved.groupby("family")]
        keep(scores, f"accuracy.{group}" if group else "accuracy", math.fsum(means) / len(means), shares)
    for task in sorted({*answers["task"]} & TASKS.keys()):
        own, against = answers[answers["task"] == task], answers[answers["task"] == TASKS[task].against]
        if levels := TASKS[task].compares:
            own, against = (own[own["level"] == level] for level in levels)
        _keep_difference(scores, task, own, against)
    return scores | calibration.scores(answers, family)


def keep(scores: dict[str, float], name: str, value: float, parts: Iterable[pd.DataFrame]) -> None:
    """Note a score and its error.

    Args:
        parts: independent ones, each with columns cluster and moves: by how much each item moves the score.
    """
    errors = [clustered.error(part["moves"].to_numpy(), pd.factorize(part["cluster"])[0]) for part in parts]
    scores[name], scores[f"{name}.stderr"] = float(value), math.sqrt(math.fsum(error**2 for error in errors))


def _moved(part: pd.DataFrame, moves: np.ndarray) -> pd.DataFrame:
    """By how much each item moves a score of its task."""
    task = str(part["task"].iloc[0])
    return pd.DataFrame({"task": task, "family": family(task), "cluster": part["cluster"], "moves": moves})


def _balanced(part: pd.DataFrame) -> tuple[float, list[pd.DataFrame]]:
    """The mean over right answers of the accuracy on the items that have it, and what each item moves it by."""
    kinds = part.groupby("answer")["correct"]
    means, counts = kinds.transform("mean"), kinds.transform("size")
    return kinds.mean().mean(), [_moved(part, ((part["correct"] - means) / counts / kinds.ngroups).to_numpy(float))]


def _keep_difference(scores: dict[str, float], task: str, own: pd.DataFrame, against: pd.DataFrame) -> None:
    """By how much another part of a task, or another task, is better, on the clusters that both have."""
    both = set(own["cluster"]) & set(against["cluster"])
    if not both:
        return
    means, moved = [], []
    for sign, asked in ((1, against), (-1, own)):
        shared = asked[asked["cluster"].isin(both)]
        right = shared["correct"].to_numpy(float)
        means.append(right.mean())
        moved.append(_moved(shared, sign * (right - right.mean()) / len(right)))
    keep(scores, f"difference.{task}", means[0] - means[1], [pd.concat(moved)])
