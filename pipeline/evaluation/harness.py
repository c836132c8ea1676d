"""Zero-shot accuracy through lm-eval, on the hub's data sets or on a folder of JSON lines files.

For a folder, each task's file includes the harness's own and changes only where the data is: the prompts, the metrics
and the scoring stay theirs.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from pipeline.evaluation import provenance
from pipeline.evaluation.items import HASH

PREFIX = "permafrost_"


@dataclass(frozen=True)
class Task:
    """One of the harness's tasks: its own file, its headline metric, and the fields that a row of its data has."""

    file: str
    metric: str
    fields: Mapping[str, type | tuple[type, ...]]
    split: str


_QUESTION = {"question": str, "choices": dict, "answerKey": str}
TASKS = {
    "piqa": Task("piqa/piqa.yaml", "acc", {"goal": str, "sol1": str, "sol2": str, "label": int}, "validation"),
    "hellaswag": Task(
        "hellaswag/hellaswag.yaml",
        "acc_norm",
        {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (str, int)},
        "validation",
    ),
    "winogrande": Task(
        "winogrande/default.yaml",
        "acc",
        {"sentence": str, "option1": str, "option2": str, "answer": str},
        "validation",
    ),
    "openbookqa": Task(
        "openbookqa/openbookqa.yaml",
        "acc_norm",
        {"question_stem": str, "choices": dict, "answerKey": str},
        "test",
    ),
    "arc_easy": Task("arc/arc_easy.yaml", "acc", _QUESTION, "test"),
    "arc_challenge": Task("arc/arc_challenge.yaml", "acc_norm", _QUESTION, "test"),
}


def check_folder(folder: str | Path, tasks: list[str]) -> None:
    """Raises:
    ValueError: a task's file is missing, has fewer than two items or a malformed line: all, with file and line.
    """
    problems = []
    for name in tasks:
        file = Path(folder) / f"{name}.jsonl"
        if not file.is_file():
            problems.append(f"{file} does not exist")
            continue
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # JSON allows Unicode's other line ends
        if lines == [""]:
            problems.append(f"{file} is empty")
        elif len(lines) == 1:
            problems.append(f"{file} has one item, which leaves accuracy without a standard error; give it more")
        for number, line in enumerate(lines, 1):
            problem = _malformed(line, name)
            if problem:
                problems.append(f"{file}, line {number}: {problem}")
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"evaluate.benchmarks {str(folder)!r}:\n  " + "\n  ".join(problems[:20]) + more)


def _malformed(line: str, task: str) -> str:
    """What is wrong with a line of a task's file; empty if nothing is."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    for field, kind in TASKS[task].fields.items():
        if field not in row:
            return f"lacks the field {field!r}"
        if not isinstance(row[field], kind):
            return f"field {field!r} is {type(row[field]).__name__}, not {kind}"
    if task == "piqa" and row["label"] not in (0, 1):
        return f"label {row['label']!r} is neither 0 nor 1"
    if task == "hellaswag" and str(row["label"]) not in [str(i) for i in range(len(row["endings"]))]:
        return f"label {row['label']!r} is no index of its {len(row['endings'])} endings"
    if task == "winogrande" and (row["answer"] not in ("1", "2") or row["sentence"].count("_") != 1):
        return "expected one '_' in the sentence and the answer '1' or '2'"
    if "choices" in row:
        choices = row["choices"]
        sides = choices.get("text"), choices.get("label")
        if not all(isinstance(side, list) for side in sides) or len(choices["text"]) != len(choices["label"]):
            return "choices need as many 'text' as 'label'"
        if row["answerKey"] not in choices["label"]:
            return f"answerKey {row['answerKey']!r} is none of the labels {choices['label']}"
    return ""


def accuracy(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: list[str],
    folder: str | Path | None,
    limit: int,
    batch: int,
    scratch: Path,
    begin: Callable[[int], Callable[[int], object]] = lambda _: int,
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, str]]:
    """Zero-shot accuracy of each task, with standard errors, as lm-eval's simple_evaluate gives them.

    Args:
        model: on the CPU, in the dtype to score in.
        tasks: names of TASKS.
        folder: of JSON lines files; None for the data sets on the hub.
        limit: items a task; 0 for all. batch: requests a forward.
        scratch: where the data sets library may keep its tables.
        begin: called with the number of requests; returns what is called with each number of them that is done.

    Returns:
        accuracy.{task} and accuracy.{task}.stderr of each task's headline metric (TASKS), and accuracy, the mean over
        tasks, with its standard error; the row of each item for `items.answers`; and what was read, as
        pipeline/evaluation/provenance.py has it.

    Raises:
        ValueError: the folder is not sound, or the hub's data cannot be had.
    """
    if folder is not None:
        check_folder(folder, tasks)
    import lm_eval
    from lm_eval.tasks import TaskManager

    from pipeline.evaluation.prefixes import SharedPrefixes

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as written:
        if folder is None:
            manager, names = TaskManager(), {name: name for name in tasks}
        else:
            _write_task_files(Path(written), Path(folder).resolve(), tasks, Path(lm_eval.__file__).parent / "tasks")
            manager = TaskManager(include_path=written, include_defaults=False)
            names = {name: PREFIX + name for name in tasks}
        try:
            with _tables_in(scratch):
                loaded = manager.load([*names.values()])["tasks"]
                asked = SharedPrefixes(begin, pretrained=model, tokenizer=tokenizer, batch_size=batch)
                results = lm_eval.simple_evaluate(
                    model=asked,
                    tasks=[*loaded.values()],
                    task_manager=manager,
                    limit=limit or None,
                    bootstrap_iters=100,  # 0 would drop the standard errors, which are analytic for accuracy
                    log_samples=True,
                    random_seed=0,
                )
        except (OSError, ConnectionError) as error:
            raise ValueError(
                f"the data sets of {tasks} cannot be had: {str(error).splitlines()[0]}; "
                "check the network, or set evaluate.source to folder"
            ) from None
    if asked.passed_over:
        print(f"evaluate: an item's answers are read one by one: {asked.passed_over}", flush=True)
    rows = [_answer(name, sample) for name, full in names.items() for sample in results["samples"][full]]
    read = _provenance(folder, names, {full: loaded[full].dataset for full in names.values()}, results["samples"])
    return _headline({name: results["results"][full] for name, full in names.items()}), rows, read


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


def _provenance(
    folder: str | Path | None, names: dict[str, str], data_sets: dict[str, Any], samples: dict[str, Any]
) -> dict[str, str]:
    """What was read of each task, as pipeline/evaluation/provenance.py has it.

    Args:
        names: lm-eval's by ours. data_sets: the data set of each of lm-eval's tasks. samples: what it asked of each.
    """
    benchmarks = {
        f"benchmark.{name}": provenance.of_benchmark(name, None if folder is None else Path(folder), data_sets[full])
        for name, full in names.items()
    }
    return benchmarks | {f"items.{name}": provenance.of_items(samples[full]) for name, full in names.items()}


def _headline(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    scores = {}
    for name, values in results.items():
        metric = TASKS[name].metric
        scores[f"accuracy.{name}"] = float(values[f"{metric},none"])
        scores[f"accuracy.{name}.stderr"] = float(values[f"{metric}_stderr,none"])
    count = len(results)
    scores["accuracy"] = sum(scores[f"accuracy.{name}"] for name in results) / count
    scores["accuracy.stderr"] = sum(scores[f"accuracy.{name}.stderr"] ** 2 for name in results) ** 0.5 / count
    return scores


def _answer(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """The row of one of the harness's samples; the answer is chosen as it chooses, since it keeps no note of it."""
    likelihoods = [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
    metric = TASKS[task].metric
    ranked = likelihoods
    if metric == "acc_norm":  # by the answer's characters, without the blank before it
        ranked = [x / len(pair[1].removeprefix(" ")) for x, pair in zip(likelihoods, sample["arguments"], strict=True)]
    return {
        "task": task,
        "item": sample["doc_id"],
        "hash": sample["doc_hash"][:HASH],
        "prediction": ranked.index(max(ranked)),
        "correct": bool(sample[metric]),
        "log_likelihoods": likelihoods,
    }


def _write_task_files(where: Path, folder: Path, tasks: list[str], harness: Path) -> None:
    for name in tasks:
        task = TASKS[name]
        content = {
            "include": str(harness / task.file),
            "task": PREFIX + name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {task.split: str(folder / f"{name}.jsonl")}},
            "training_split": None,
            "validation_split": task.split if task.split == "validation" else None,
            "test_split": task.split if task.split == "test" else None,
        }
        (where / f"{name}.yaml").write_text(yaml.safe_dump(content))
