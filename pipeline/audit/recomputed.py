"""Scores and the report's numbers, worked out again from what they were made from."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from pipeline.audit import numbers
from pipeline.audit.finding import Finding
from pipeline.audit.trees import WorkingTree
from pipeline.audit.versions import EVALUATE, Version, summary_file
from pipeline.evaluation.items import Items
from pipeline.report import proofs, summary

MODEL, TEACHER = "--model", "--teacher"  # before the paths of what is scored and of its teacher, in evaluate's command
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, ArithmeticError)  # what damaged files give
GIVE = "what it was made from gives"
CLOSE = 1e-9  # of a number that is worked out again, relative


def scores(root: Path, version: Version) -> Iterator[Finding]:
    """Scores that do not follow from their items and from the model's file."""
    for variant in version.variants:
        stage, file = version.lock.stages[f"{EVALUATE}{variant}"], version.scores(variant)
        content = WorkingTree(root).read(file) if file else None
        if file is None or content is None:
            continue  # told among the hashes
        actual, expected, whole = numbers.read(content), dict[str, float](), True
        if actual is None:
            yield Finding(file, "it holds no numbers by name")
            continue
        folder = version.items_folder(variant)
        model, teacher = (re.search(rf"{option} (\S+)", stage.cmd) for option in (MODEL, TEACHER))
        give_size = partial(numbers.of_model, teacher=root / teacher[1]) if teacher else None
        for source, give in ((folder, _of_items), (model and model[1], give_size)):
            try:
                expected |= give(root / source) if source and give else {}
            except UNREADABLE as error:
                yield Finding(file, f"it cannot be held against {source}: {error!r}")
                whole = False
        sure = whole and folder and model and teacher
        unpacked = {numbers.SIZES[1]} - {*expected}  # of such weights the files do not tell it
        names = {*expected, *(actual if sure else ())} - unpacked
        yield from _differing(file, actual, expected, sorted(names), GIVE)
        left = sorted({*actual} - names) if whole else []
        if left:
            yield Finding(file, f"{', '.join(left)}: nothing that it was made from tells of it", checked=False)


def _of_items(folder: Path) -> dict[str, float]:
    return numbers.of_items(Items.load(folder))


def report(root: Path, version: Version) -> Iterator[Finding]:
    """Numbers of the report that do not follow from the scores."""
    tree, path = WorkingTree(root), summary_file(version.lock)
    content = tree.read(path) if path else None
    files = {variant: version.scores(variant) for variant in version.variants}
    contents = {variant: tree.read(file) for variant, file in files.items() if file}
    if path is None or content is None:
        return  # told among the hashes, if a stage made it
    missing = [variant for variant in summary.VARIANTS if numbers.read(contents.get(variant)) is None]
    if missing:
        yield Finding(path, f"its numbers: there are no scores of {', '.join(missing)} to read", checked=False)
        return
    actual = numbers.read(content)
    if actual is None:
        yield Finding(path, "it holds no numbers by name")
        return
    try:
        scores = {variant: json.loads(contents[variant] or b"") for variant in summary.VARIANTS}
        folders = {variant: version.items_folder(variant) for variant in summary.VARIANTS}
        lost = [variant for variant, folder in folders.items() if folder is None]
        if lost:
            yield Finding(path, f"the gap won back: there are no items of {', '.join(lost)} to read", checked=False)
            yield from _differing(path, actual, summary.of_scores(scores), summary.of_scores(scores), GIVE)
            return
        documents = {variant: Items.load(root / (folder or "")).documents for variant, folder in folders.items()}
        expected = summary.summarize(scores, documents)
        expected |= proofs.of_proofs(proofs.read(root / version.proofs)) if version.proofs else {}
    except KeyError as error:
        yield Finding(path, f"the scores that it is made from have no {error}")
        return
    except UNREADABLE as error:
        yield Finding(path, f"it cannot be held against the scores, items and proofs: {error}")
        return
    yield from _differing(path, actual, expected, [*expected, *actual], GIVE)


def _differing(
    file: str, actual: dict[str, float], expected: dict[str, float], names: Iterable[str], giver: str
) -> Iterator[Finding]:
    """Numbers that are not what they should be; of a standard error of one item there is nothing to say."""
    for name in dict.fromkeys(names):
        here, there = actual.get(name), expected.get(name)
        if there is not None and math.isnan(there):
            continue
        if here is None or there is None or not math.isclose(here, there, rel_tol=CLOSE, abs_tol=CLOSE):
            yield Finding(file, f"{name} is {here}, but {giver} {there}")
