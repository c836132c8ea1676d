"""The fewest bits whose loss is shown to be within the margin: tests in an order that was fixed before.

Bits go from high to low, and the first that is not within ends it. So each is tested at the full level, and all claims
together are wrong at that level at most (Maurer, Hothorn and Lehmacher 1995; a closed test). That all sub-tasks of a
group are within needs no correction either: each is shown, and the claim is wrong only if one of them is (Berger 1982,
Technometrics 24:295). A claim for each of several sub-tasks is another matter: `corrections.holm` where bits do not
vary, and verdicts at level / sub-tasks where each has a sequence of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.statistics.non_inferiority import NO_SIGNAL, WITHIN


@dataclass(frozen=True)
class Least:
    """Where a sequence ended.

    Attributes:
        bits: the fewest that are shown to be enough, with all above them; None: not even the most.
        stopped_at: the bits that failed; None: none did. failed: sub-tasks that were not within there.
        no_signal: sub-tasks of which nothing is claimed, as the teacher is not above chance.
    """

    bits: float | None
    stopped_at: float | None
    failed: tuple[str, ...]
    no_signal: tuple[str, ...]


def least(verdicts: Mapping[float, Mapping[str, str]]) -> Least:
    """The fewest bits with all sub-tasks within, and all bits above them likewise.

    Sub-tasks without a signal are left out; where no other is left, nothing is shown.

    Args:
        verdicts: of bits (8, 4.5, …) and sub-task, `Verdict.verdict`. All bits have the same sub-tasks.

    Raises:
        ValueError: bits without a verdict of some sub-task; a sub-task with a signal at some bits alone, so that its
            verdicts are of more than one teacher; all of them at once.
    """
    tasks = sorted({task for by_task in verdicts.values() for task in by_task})
    problems = [
        f"{bits:g} bits: no verdict of {task}; score it there, or leave it out of all"
        for bits, by_task in verdicts.items()
        for task in tasks
        if task not in by_task
    ]
    silent = {task: {by_task.get(task) == NO_SIGNAL for by_task in verdicts.values()} for task in tasks}
    if not problems:
        problems = [
            f"{task}: no signal at some bits, one at others; compare all bits with one teacher on the same items"
            for task, mixed in silent.items()
            if len(mixed) > 1
        ]
    if problems:
        raise ValueError("; ".join(problems))
    judged = [task for task in tasks if True not in silent[task]]
    no_signal = tuple(task for task in tasks if task not in judged)
    enough = None
    for bits in sorted(verdicts, reverse=True):
        failed = tuple(task for task in judged if verdicts[bits][task] != WITHIN)
        if failed or not judged:
            return Least(enough, bits, failed, no_signal)
        enough = bits
    return Least(enough, None, (), no_signal)
