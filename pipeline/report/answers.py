"""The first screen: is the student good, where does it lose, how large is it, can it be run."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.evaluation.tasks import family, in_writing
from pipeline.report import summary as summaries
from pipeline.statistics import paired

MEGA = 1e6
RUN = {  # what is said of each format
    "compressed-tensors": "plain transformers reads it, the weights packed as integers (compressed-tensors).",
    "gguf": "llama.cpp runs it, the same codes and scales in its blocks.",
    "onnx": "onnxruntime-genai and onnxruntime run it, the same codes and scales in front of each product.",
    "mlx": "mlx-lm loads it, the same codes and scales in its groups.",
    "qnn": "onnxruntime-qnn runs it, compiled for a Snapdragon's NPU.",
    "executorch": "ExecuTorch runs it, on phones too, the same codes and scales in XNNPACK's products.",
    "dequantized": "plain transformers reads it, as a float32 model of the same numbers; nothing is packed.",
}

RUNNERS = {
    "gguf": "llama.cpp",
    "onnx": "onnxruntime",
    "mlx": "mlx-lm",
    "qnn": "onnxruntime-qnn",
    "executorch": "ExecuTorch",
}


@dataclass(frozen=True)
class Answer:
    """A question of the first screen, its answer in a few words, and what there is to say of it."""

    question: str
    short: str
    long: str


@dataclass(frozen=True)
class Change:
    """How a task's accuracy changed from the teacher, or the mean's: difference, 95 % interval (shares), and p; of a
    task it is corrected by Bonferroni for their number."""

    task: str
    difference: float
    reach: float
    p: float

    def __str__(self) -> str:
        low, high = (100 * (self.difference + sign * self.reach) for sign in (-1, 1))
        return f"{self.task} {100 * self.difference:+.1f} points ({low:+.1f} to {high:+.1f})"


def answers(
    summary: Mapping[str, float],
    answered: Mapping[str, pd.DataFrame],
    folders: Mapping[str, str],
    inputs_quantized: bool,
) -> list[Answer]:
    """The four questions with their answers.

    Args:
        summary: as `summarize` makes it. answered: of teacher and student, as `Items.answers`. folders: the student's,
            by its format. inputs_quantized: whether inputs or the KV cache are, too.
    """
    both = answered["teacher"], answered["student"]
    return [
        _good(summary),
        _loses(summary, task_changes(*both), mean_change(*both)),
        _large(summary),
        _runs(folders, inputs_quantized),
    ]


def task_changes(teacher: pd.DataFrame, student: pd.DataFrame) -> list[Change]:
    """Each task's change, the largest loss first.

    Args:
        teacher, student: answers as `Items.answers`: task, item, hash, cluster, correct.
    """
    apart = _apart(teacher, student)
    changes = []
    for task, (values, clusters) in apart.items():
        coins = [paired.by_cluster([values], [clusters])]
        p = min(1.0, len(apart) * paired.sign_flips(coins))
        changes.append(Change(task, float(values.mean()), paired.reach_over_tasks(coins), p))
    return sorted(changes, key=lambda change: (change.difference, change.task))


def mean_change(teacher: pd.DataFrame, student: pd.DataFrame) -> Change:
    """The change of the mean over tasks, without those answered in writing; args as of `task_changes`."""
    apart = {task: values for task, values in _apart(teacher, student).items() if not in_writing(task)}
    families = {family(task): [name for name in apart if family(name) == family(task)] for task in apart}
    coins = [paired.by_cluster(*zip(*(apart[name] for name in names), strict=True)) for names in families.values()]
    mean = float(np.mean([values.mean() for values, _ in apart.values()])) if apart else 0.0
    reach = paired.reach_over_tasks(coins, len(apart)) if apart else 0.0
    return Change("mean accuracy", mean, reach, paired.sign_flips(coins))


def _apart(teacher: pd.DataFrame, student: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each task the paired differences, -1, 0 or 1: float64 [items], and their clusters: int64 [items]."""
    both = teacher.merge(student, on=["task", "item", "hash"], suffixes=("", "_student"), validate="one_to_one")
    return {
        str(task): (
            part["correct_student"].to_numpy(float) - part["correct"].to_numpy(float),
            part["cluster"].to_numpy(),
        )
        for task, part in both.groupby("task")
    }


def _good(summary: Mapping[str, float]) -> Answer:
    student, teacher, rtn = (summary[f"perplexity.{name}"] for name in ("student", "teacher", "rtn"))
    share = summary.get("recovered.student")
    kl, nearest = summary["kl.student"], summary["kl.rtn"]
    if share is None:
        gap = summaries.gap_note(summary)
    else:
        low, high = (100 * summary[f"recovered.student.{end}"] for end in ("low", "high"))
        gap = f"{100 * share:.0f} % ({low:.0f} to {high:.0f}) of what round to nearest (RTN) loses is won back."
        if share < 0:
            gap = "It is worse than round to nearest (RTN)."
    return Answer(
        "Is it good?",
        f"KL {kl:.3f}, RTN {nearest:.3f}",
        f"Nats a token from the teacher, which has 0. The most likely next token is the teacher's at "
        f"{100 * summary['top1.student']:.1f} % of positions. "
        f"Perplexity {student:.2f}; teacher {teacher:.2f}, RTN {rtn:.2f}. {gap}",
    )


def _loses(summary: Mapping[str, float], changes: list[Change], mean: Change) -> Answer:
    shown = [change for change in changes if change.p < paired.LEVEL and change.difference < 0]
    above = 100 * (summary["perplexity.student"] / summary["perplexity.teacher"] - 1)
    means = f"Perplexity is {abs(above):.0f} % {'above' if above >= 0 else 'below'} the teacher's."
    if "accuracy.student" in summary:  # not where all tasks are answered in writing
        student, teacher = (100 * summary[f"accuracy.{variant}"] for variant in ("student", "teacher"))
        means = f"Mean accuracy {student:.1f} %, teacher {teacher:.1f} %. {means}"
    if shown:
        return Answer("Where does it lose?", ", ".join(change.task for change in shown), f"{_listed(shown)}. {means}")
    if not changes:
        return Answer("Where does it lose?", "no task was asked", means)
    if changes[0].difference >= 0:
        return Answer("Where does it lose?", "on no task", f"No task's accuracy fell. {means}")
    worst = f"The largest drop, {changes[0]}, is not shown as one of {len(changes)}."
    if mean.p < paired.LEVEL and mean.difference < 0:
        return Answer("Where does it lose?", "over all tasks, on none alone", f"{mean}. {worst} {means}")
    return Answer("Where does it lose?", "no loss shown on any task", f"{worst} {means}")


def _large(summary: Mapping[str, float]) -> Answer:
    student, teacher, rtn = (summary[f"weight_bytes.{name}"] for name in ("student", "teacher", "rtn"))
    return Answer(
        "How large is it?",
        f"{student / MEGA:.3g} MB",
        f"{100 * student / teacher:.0f} % of the teacher's {teacher / MEGA:.3g} MB; RTN takes {rtn / MEGA:.3g} MB. "
        f"{summary['bits_per_weight.student']:.2f} bits a weight in all, "
        f"{summary['bits_per_quantized_weight.student']:.2f} of a quantized one, scales included.",
    )


def _runs(folders: Mapping[str, str], inputs_quantized: bool) -> Answer:
    inputs = (
        "Inputs or KV cache are quantized in the scores as the scheme says, and in ONNX; other runtimes do that in "
        "ways of their own."
        if inputs_quantized
        else ""
    )
    told = [f"{folder}: {RUN[name]}" for name, folder in folders.items()]
    where = ["from_pretrained loads it", *(f"{RUNNERS[name]} runs it" for name in folders if name in RUNNERS)]
    return Answer("Can I run it?", f"Yes, {', '.join(where)}", " ".join([*told, inputs]).strip())


def _listed(changes: list[Change]) -> str:
    return "; ".join(map(str, changes))
