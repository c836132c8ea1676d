"""Accuracy through lm-eval, on the hub's data sets, on a folder of JSON lines files, or on items that code makes."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special
from transformers import PreTrainedModel

from pipeline.evaluation import items, needs, provenance, selection, task_files
from pipeline.evaluation.made.table import MADE
from pipeline.evaluation.tasks import GROUPS, TASKS

Sample = Mapping[str, Any]
"""What lm-eval keeps of an item."""


def answers(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: Sequence[str],
    folder: str | Path | None,
    limit: int,
    batch: int,
    scratch: Path,
    begin: Callable[[int], Callable[[int], object]] = lambda _: int,
    made: int = 0,
    way: str = "",
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A model's answers to tasks, judged item by item as lm-eval's simple_evaluate does.

    Args:
        model: on the CPU, in the dtype to score in.
        tasks: names of TASKS.
        folder: of JSON lines files; None for the data sets on the hub.
        limit: items of a task that is not made; 0 for all. batch: requests a forward.
        scratch: where made items lie, and where the data sets library may keep its tables.
        begin: called with the number of requests; returns what is called with each number of them that is done.
        made: items of a made task; 0 for its own number.
        way: of decoding.WAYS, in which the model writes answers; empty: with its own attention and cache.

    Returns:
        the row of each item for `items.answers`; and what was read, as pipeline/evaluation/provenance.py has it. Of no
        tasks, nothing.

    Raises:
        ValueError: the folder is not sound, or the hub's data cannot be had.
    """
    tasks = selection.selected(GROUPS, tasks, folder, limit, made)
    if not tasks:
        return [], {}
    from lm_eval.tasks import TaskManager

    from pipeline.evaluation.prefixes import SharedPrefixes, opening

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    needs.settle(tasks)
    files = task_files.item_files(tasks, folder, scratch, made)
    with tempfile.TemporaryDirectory() as written:
        task_files.write(Path(written), files)
        manager = TaskManager(include_path=written, include_defaults=len(files) < len(tasks))
        try:
            with _tables_in(scratch):
                loaded = {
                    name: manager.load([task_files.PREFIX + name if name in files else TASKS[name].hub])["tasks"]
                    for name in tasks
                }
                asked = SharedPrefixes(
                    *(begin, way),
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=batch,
                    prefix_token_id=opening(tokenizer),
                )
                samples = _samples(asked, manager, loaded, limit)
        except (OSError, ConnectionError) as error:
            raise ValueError(
                f"the data sets of {list(tasks)} cannot be had: {str(error).splitlines()[0]}; "
                "check the network, or set evaluate.source to folder"
            ) from None
    if asked.passed_over:
        print(f"evaluate: an item's answers are read one by one: {asked.passed_over}", flush=True)
    rows, read = [], dict[str, str]()
    for name, parts in loaded.items():
        of_task = [(part, sample) for part in parts for sample in _judged(samples[part], name)]
        rows += [_row(name, i, parts[part], sample) for i, (part, sample) in enumerate(of_task)]
        splits = {f"{part}.{split}": data for part in parts for split, data in parts[part].dataset.items()}
        read[f"benchmark.{name}"] = provenance.of_benchmark(files.get(name), splits)
        read[f"items.{name}"] = provenance.of_items(sample for _, sample in of_task)
    return rows, read


def _samples(asked: Any, manager: Any, loaded: dict[str, dict[str, Any]], limit: int) -> dict[str, list[Sample]]:
    """The samples of each of lm-eval's tasks, asked of its model."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model=asked,
        tasks=[task for parts in loaded.values() for task in parts.values()],
        task_manager=manager,
        samples=_limited(loaded, limit),
        bootstrap_iters=0,  # errors are worked out from the items
        log_samples=True,
        random_seed=0,
    )
    return results["samples"]


@contextmanager
def _tables_in(scratch: Path) -> Iterator[None]:
    """Let the data sets library keep its tables in a folder; it reads its environment once, when it is imported."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = scratch.resolve()
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _limited(loaded: dict[str, dict[str, Any]], limit: int) -> dict[str, list[int]] | None:
    """The first items of each of lm-eval's tasks, but all of a made one; None: all of all."""
    if not limit:
        return None
    return {
        part: [*range(len(task.eval_docs) if name in MADE else min(limit, len(task.eval_docs)))]
        for name, parts in loaded.items()
        for part, task in parts.items()
    }


def _judged(samples: Sequence[Sample], name: str) -> list[Sample]:
    """Those of a task's filter: lm-eval has a sample of an item for each of them."""
    return [sample for sample in samples if sample["filter"] == TASKS[name].filter]


def _row(name: str, item: int, asked: Any, sample: Sample) -> dict[str, Any]:
    """The row of one of lm-eval's samples; the answer is chosen as it chooses, since it keeps no note of it.

    Args:
        item: its place in the task. asked: lm-eval's task.
    """
    task, doc = TASKS[name], sample["doc"]
    likelihoods = [] if task.generates else [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
    ranked = np.array(likelihoods)
    correct = bool(sample[task.metric])
    if task.generates:  # nothing is chosen from
        answer, prediction, probabilities = -1, int(correct), ranked
    elif len(likelihoods) == 1:  # the answer's own alone: right where greedy writing gives it
        answer, prediction, probabilities = 0, 0 if correct else -1, np.exp(ranked)
    else:
        if task.metric == "acc_norm":  # by the answer's characters, without the blank before it
            ranked = ranked / [len(continuation.removeprefix(" ")) for _, continuation in sample["arguments"]]
        answer, prediction, probabilities = _right(asked, doc), int(ranked.argmax()), special.softmax(ranked)
    cluster = doc.get(task.cluster) if task.cluster else None
    level = doc.get(task.level) if task.level else None
    return {
        "task": name,
        "item": item,
        "hash": sample["doc_hash"][: items.HASH],
        "prediction": prediction,
        "correct": correct,
        "log_likelihoods": likelihoods,
        "group": task.group,
        "part": task.part,
        "cluster": item if cluster is None else int(cluster),
        "level": "" if level is None else str(level),
        "answer": answer,
        "probabilities": probabilities.tolist(),
        "right_probability": float(probabilities[answer]) if likelihoods else math.nan,
    }


def _right(asked: Any, doc: Mapping[str, Any]) -> int:
    """The index of the right choice, as lm-eval finds it."""
    right = asked.doc_to_text(doc) if asked.multiple_input else asked.doc_to_target(doc)
    return int(asked.doc_to_choice(doc).index(right)) if isinstance(right, str) else int(right)
