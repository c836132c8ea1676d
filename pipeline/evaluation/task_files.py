"""What lm-eval reads to ask a task of a folder, or one whose items code makes.

A task of lm-eval includes its own file there and changes only where the data is: the prompts, the metrics and the
scoring stay lm-eval's. Made items have one template for all.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import contract
from pipeline.evaluation import selection
from pipeline.evaluation.made.table import MADE
from pipeline.evaluation.tasks import TASKS, harness_folder

PREFIX = "permafrost_"
TEMPLATE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "target_delimiter": " ",
    "num_fewshot": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def item_files(tasks: Sequence[str], folder: str | Path | None, scratch: Path, items: int) -> dict[str, Path]:
    """The JSON lines file of each task that has one: in the folder, or of made items, written into scratch."""
    files = {}
    for name in tasks:
        if name in MADE:
            files[name] = scratch.resolve() / "made" / f"{name}.jsonl"
            files[name].parent.mkdir(parents=True, exist_ok=True)
            rows = selection.made_rows(name, items)
            contract.write_text(files[name], "".join(json.dumps(row) + "\n" for row in rows))
        elif folder is not None:
            files[name] = Path(folder).resolve() / f"{name}.jsonl"
    return files


def write(where: Path, files: dict[str, Path]) -> None:
    """The file for lm-eval of each task that has items in a file."""
    for name, file in files.items():
        task = TASKS[name]
        content: dict[str, Any] = {
            **({"include": str(harness_folder() / task.file)} if task.file else TEMPLATE),
            "task": PREFIX + name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {task.split: str(file)}},
            "training_split": None,
            "validation_split": task.split if task.split == "validation" else None,
            "test_split": task.split if task.split == "test" else None,
            "fewshot_split": None,
        }
        (where / f"{name}.yaml").write_text(yaml.safe_dump(content))
