"""Accuracy through lm-eval against log-likelihoods computed here, and the checks of a benchmark folder."""

import json
import math
from dataclasses import replace
from pathlib import Path

import datasets
import lm_eval
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.artifacts import contract
from pipeline.evaluation import items, tasks
from pipeline.evaluation.harness import answers
from pipeline.evaluation.made import table as made
from pipeline.evaluation.scores import of_answers
from pipeline.evaluation.selection import made_rows
from pipeline.evaluation.tasks import harness_folder
from tests import tiny

SHIPPED = Path(__file__).parents[3] / "data" / "benchmarks"
ITEMS = 12
TASKS = ("piqa", "hellaswag", "winogrande", "openbookqa", "arc_easy", "arc_challenge")  # of which the project has items
NORMALISED = {"hellaswag", "openbookqa", "arc_challenge"}  # whose headline, by custom, is acc_norm
HarnessRun = tuple[list[dict], dict[str, str]]  # rows of items, what was read


def rows_of(task: str) -> list[dict]:
    return [json.loads(line) for line in (SHIPPED / f"{task}.jsonl").read_text(encoding="utf-8").split("\n") if line]


def write(folder: Path, task: str, *lines: str) -> Path:
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first items of each shipped task."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for task in TASKS:
        write(folder, task, *(json.dumps(row) for row in rows_of(task)[:ITEMS]))
    return folder


def log_likelihood(context: str, continuation: str) -> float:
    """log P(continuation | context) under the tiny model, a token a byte."""
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    start, whole = (tokenizer(t)["input_ids"] for t in (context, context + continuation))
    log_p = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].double(), dim=-1)
    return sum(log_p[i - 1, whole[i]].item() for i in range(len(start), len(whole)))


def by_hand(task: str) -> list[tuple[int, bool, list[float]]]:
    """Answer, whether it is right, and likelihoods of each item by the task's own prompt; the answer is chosen by the
    likelihood of a character where that is the custom."""
    answers = []
    for row in rows_of(task)[:ITEMS]:
        if task == "winogrande":  # scores the rest of the sentence after either option
            before, after = row["sentence"].split("_")
            likelihoods = [
                log_likelihood(before + row[option], " " + after.strip()) for option in ("option1", "option2")
            ]
            gold = int(row["answer"]) - 1
        else:
            if task == "piqa":
                prompt, choices, gold = f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"]
            elif task == "hellaswag":
                prompt = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
                choices, gold = row["endings"], int(row["label"])
            elif task == "openbookqa":
                prompt, choices = row["question_stem"], row["choices"]["text"]
                gold = row["choices"]["label"].index(row["answerKey"])
            else:
                prompt, choices = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
                gold = row["choices"]["label"].index(row["answerKey"])
            likelihoods = [log_likelihood(prompt, " " + choice) for choice in choices]
        ranked = likelihoods
        if task in NORMALISED:
            ranked = [value / len(choice) for value, choice in zip(likelihoods, choices, strict=True)]
        answer = max(range(len(ranked)), key=ranked.__getitem__)
        answers.append((answer, answer == gold, likelihoods))
    return answers


def share_right(task: str) -> float:
    right = [correct for _, correct, _ in by_hand(task)]
    return sum(right) / len(right)


@pytest.fixture(scope="module")
def harness_run(small: Path, tmp_path_factory: pytest.TempPathFactory) -> HarnessRun:
    return answers(tiny.llama(), tiny.tokenizer(), list(TASKS), small, 0, 4, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def scores(harness_run: HarnessRun) -> dict[str, float]:
    return of_answers(items.answers(harness_run[0]))


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_is_that_of_likelihoods_computed_by_hand(scores: dict[str, float], task: str):
    expected = share_right(task)
    assert scores[f"accuracy.{task}"] == pytest.approx(expected)
    error = math.sqrt(expected * (1 - expected) / (ITEMS - 1))
    assert scores[f"accuracy.{task}.stderr"] == pytest.approx(error)


@pytest.mark.parametrize("task", TASKS)
def test_each_item_has_its_answer_and_likelihoods(harness_run: HarnessRun, task: str):
    table = items.answers(harness_run[0])
    mine = table[table["task"] == task]
    assert [*mine["item"]] == [*range(ITEMS)]
    assert mine["hash"].nunique() == ITEMS
    for row, (answer, correct, likelihoods) in zip(mine.to_dict("records"), by_hand(task), strict=True):
        assert (row["prediction"], row["correct"]) == (answer, correct)
        assert row["log_likelihoods"] == pytest.approx(likelihoods, rel=1e-4)


def test_the_headline_is_the_mean_over_tasks_with_its_error(scores: dict[str, float]):
    accuracies = [scores[f"accuracy.{task}"] for task in TASKS]
    errors = [scores[f"accuracy.{task}.stderr"] for task in TASKS]
    assert scores["accuracy"] == pytest.approx(sum(accuracies) / 6)
    assert scores["accuracy.stderr"] == pytest.approx(math.sqrt(sum(e * e for e in errors)) / 6)
    assert [name for name in scores if not name.endswith(".stderr")] == [
        *(f"accuracy.{task}" for task in sorted(TASKS)),
        *("accuracy.basic", "accuracy", "calibration.brier", "calibration.ece"),
    ]
    assert scores["accuracy.basic"] == scores["accuracy"]
    assert 0 < scores["accuracy"] < 1


def test_the_limit_takes_the_first_items(small: Path, tmp_path: Path):
    rows, _ = answers(tiny.llama(), tiny.tokenizer(), ["piqa"], SHIPPED, ITEMS, 4, tmp_path)
    assert of_answers(items.answers(rows))["accuracy.piqa"] == pytest.approx(share_right("piqa"))


def test_tables_are_kept_in_the_scratch_folder_and_nowhere_else(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Although the data sets library was imported before, with another cache."""
    own = tmp_path / "own"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", own)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", own / "downloads")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    answers(tiny.llama(), tiny.tokenizer(), ["piqa"], small, 2, 4, tmp_path / "tables")
    assert list((tmp_path / "tables").rglob("*.arrow"))
    assert not own.exists()
    assert own == datasets.config.HF_DATASETS_CACHE


def test_the_data_sets_library_has_its_own_cache_back_after_a_failure(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(**options: object) -> None:
        assert tmp_path / "tables" == datasets.config.HF_DATASETS_CACHE
        raise OSError("no route to host")

    before = datasets.config.HF_DATASETS_CACHE
    monkeypatch.setattr(lm_eval, "simple_evaluate", fail)
    with pytest.raises(ValueError, match="cannot be had: no route to host"):
        answers(tiny.llama(), tiny.tokenizer(), ["piqa"], small, 2, 4, tmp_path / "tables")
    assert before == datasets.config.HF_DATASETS_CACHE


def test_data_sets_out_of_reach_are_answered_with_the_way_out(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"the data sets of \['piqa'\] cannot be had: .* set evaluate\.source to folder"
    ):
        answers(tiny.llama(), tiny.tokenizer(), ["piqa"], None, 2, 4, tmp_path)


def test_of_no_tasks_nothing_is_asked(tmp_path: Path):
    assert answers(tiny.llama(), tiny.tokenizer(), [], SHIPPED, 0, 4, tmp_path / "tables") == ([], {})
    assert not (tmp_path / "tables").exists()


def test_a_malformed_folder_is_refused_before_the_harness_starts(tmp_path: Path):
    with pytest.raises(ValueError, match="line 1: not JSON"):
        answers(tiny.llama(), tiny.tokenizer(), ["piqa"], write(tmp_path, "piqa", "{"), 0, 4, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_what_was_read_and_asked_is_told_by_hashes(small: Path, harness_run: HarnessRun, tmp_path: Path):
    read = harness_run[1]
    assert {*read} == {f"{what}.{task}" for what in ("benchmark", "items") for task in TASKS}
    assert read["benchmark.piqa"] == contract.sha256(small / "piqa.jsonl")
    part = answers(tiny.llama(), tiny.tokenizer(), ["piqa"], small, 2, 4, tmp_path / "tables")[1]
    assert part["benchmark.piqa"] == read["benchmark.piqa"]
    assert part["items.piqa"] != read["items.piqa"], "fewer items were asked"


def test_made_items_are_asked_as_they_are_made_whatever_the_limit(tmp_path: Path):
    rows, read = answers(
        tiny.llama(), tiny.tokenizer(), ["agreement", "piqa"], SHIPPED, 2, 4, tmp_path / "tables", made=5
    )
    asked = [row for row in rows if row["task"] == "agreement"]
    assert (len(asked), len(rows)) == (5, 7)
    for row, item in zip(asked, made_rows("agreement", 5), strict=True):
        expected = [log_likelihood(item["context"], " " + choice) for choice in item["choices"]]
        assert row["log_likelihoods"] == pytest.approx(expected, rel=1e-4)
        assert row["correct"] == (expected.index(max(expected)) == item["answer"])
        assert (row["answer"], row["cluster"], row["level"]) == (item["answer"], item["cluster"], item["level"])
    assert read["benchmark.agreement"] == contract.sha256(tmp_path / "tables/made/agreement.jsonl")
    scores = of_answers(items.answers(rows))
    assert scores["accuracy"] == pytest.approx((scores["accuracy.agreement"] + scores["accuracy.piqa"]) / 2)


def test_every_made_task_can_be_asked(tmp_path: Path):
    """By a model whose context is long enough; two levels of one task are set against each other in pairs."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=8192)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    rows, _ = answers(model, tiny.tokenizer(), [*made.MADE], None, 0, 8, tmp_path / "tables", made=8)
    scores = of_answers(items.answers(rows))
    for name, line in made.MADE.items():
        mine = [row for row in rows if row["task"] == name]
        assert len(mine) == 8
        assert f"accuracy.{line.group}" in scores
        assert (f"difference.{name}" in scores) == (line.compares is not None)
        if line.compares:
            first, second = ([row["correct"] for row in mine if row["level"] == level] for level in line.compares)
            expected = sum(second) / len(second) - sum(first) / len(first)
            assert scores[f"difference.{name}"] == pytest.approx(expected)


def test_a_task_that_the_hub_keeps_in_parts_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two files stand for parts on the hub."""
    parts = {}
    for part, (task, count) in {"one": ("piqa", 3), "two": ("piqa", 5)}.items():
        write(tmp_path, part, *(json.dumps(row) for row in rows_of(task)[-count:]))
        parts[part] = tmp_path / f"{part}.jsonl"
    folder = tmp_path / "tasks"
    folder.mkdir()
    for part, file in parts.items():
        (folder / f"{part}.yaml").write_text(
            f"include: {harness_folder() / 'piqa/piqa.yaml'}\ntask: {part}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{validation: {file}}}}}\ntraining_split: null\ntest_split: null\n"
        )
    (folder / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    monkeypatch.setitem(tasks.TASKS, "piqa", replace(tasks.TASKS["piqa"], hub="both"))
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: manager)
    rows, read = answers(tiny.llama(), tiny.tokenizer(), ["piqa"], None, 4, 4, tmp_path / "tables")
    assert [row["item"] for row in rows] == [*range(7)], "three of one, and four, the limit, of the other"
    expected = [
        json.loads(line)["goal"] for part in ("one", "two") for line in parts[part].read_text().split("\n")[:4] if line
    ]
    assert len({row["hash"] for row in rows}) == len(set(expected)) == 5, "three items are in both"
    assert read["benchmark.piqa"].startswith("one.validation: ")
