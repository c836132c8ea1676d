"""Accuracy through lm-eval against log-likelihoods computed here, and the checks of a benchmark folder."""

import json
import math
from pathlib import Path

import datasets
import lm_eval
import pytest
import torch

from pipeline.artifacts import contract
from pipeline.evaluation import items
from pipeline.evaluation.harness import TASKS, accuracy, check_folder
from tests import tiny

SHIPPED = Path(__file__).parents[3] / "data" / "benchmarks"
ITEMS = 12
NORMALISED = {"hellaswag", "openbookqa", "arc_challenge"}  # whose headline, by custom, is acc_norm
HarnessRun = tuple[dict[str, float], list[dict], dict[str, str]]  # scores, rows of items, what was read


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
    return accuracy(tiny.llama(), tiny.tokenizer(), list(TASKS), small, 0, 4, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def scores(harness_run: HarnessRun) -> dict[str, float]:
    return harness_run[0]


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_is_that_of_likelihoods_computed_by_hand(scores: dict[str, float], task: str):
    expected = share_right(task)
    assert scores[f"accuracy.{task}"] == pytest.approx(expected)
    error = math.sqrt(expected * (1 - expected) / (ITEMS - 1))
    assert scores[f"accuracy.{task}.stderr"] == pytest.approx(error)


@pytest.mark.parametrize("task", TASKS)
def test_each_item_has_its_answer_and_likelihoods(harness_run: HarnessRun, task: str):
    table = items.answers(harness_run[1])
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
    assert len(scores) == 2 * 7
    assert 0 < scores["accuracy"] < 1


def test_the_limit_takes_the_first_items(small: Path, tmp_path: Path):
    scores, _, _ = accuracy(tiny.llama(), tiny.tokenizer(), ["piqa"], SHIPPED, ITEMS, 4, tmp_path)
    assert scores["accuracy.piqa"] == pytest.approx(share_right("piqa"))


def test_tables_are_kept_in_the_scratch_folder_and_nowhere_else(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Although the data sets library was imported before, with another cache."""
    own = tmp_path / "own"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", own)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", own / "downloads")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    accuracy(tiny.llama(), tiny.tokenizer(), ["piqa"], small, 2, 4, tmp_path / "tables")
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
        accuracy(tiny.llama(), tiny.tokenizer(), ["piqa"], small, 1, 4, tmp_path / "tables")
    assert before == datasets.config.HF_DATASETS_CACHE


def changed(task: str, **changes: object) -> str:
    row = {**rows_of(task)[0], **changes}
    return json.dumps({name: value for name, value in row.items() if value is not ...})


MALFORMED = [
    ("piqa", "{", "not JSON"),
    ("piqa", "[]", "expected an object, got list"),
    ("piqa", changed("piqa", sol2=...), "lacks the field 'sol2'"),
    ("piqa", changed("piqa", goal=3), "field 'goal' is int"),
    ("piqa", changed("piqa", label=2), "label 2 is neither 0 nor 1"),
    ("hellaswag", changed("hellaswag", label="4"), "label '4' is no index of its 4 endings"),
    ("hellaswag", changed("hellaswag", label=-1), "label -1 is no index"),
    ("winogrande", changed("winogrande", sentence="no blank"), "expected one '_'"),
    ("winogrande", changed("winogrande", answer="3"), "expected one '_' in the sentence and the answer '1' or '2'"),
    ("openbookqa", changed("openbookqa", answerKey="E"), "answerKey 'E' is none of the labels"),
    ("arc_easy", changed("arc_easy", choices={"text": ["a", "b"], "label": ["A"]}), "choices need as many"),
    ("arc_easy", changed("arc_easy", choices={"text": ["a"]}), "choices need as many"),
    ("arc_easy", changed("arc_easy", choices={"text": 2, "label": 2}), "choices need as many"),
]


@pytest.mark.parametrize(("task", "line", "problem"), MALFORMED)
def test_a_malformed_line_is_named_with_file_and_number(tmp_path: Path, task: str, line: str, problem: str):
    good = changed(task)
    write(tmp_path, task, good, line, good)
    with pytest.raises(ValueError, match=r"evaluate\.benchmarks") as caught:
        check_folder(tmp_path, [task])
    (message,) = str(caught.value).splitlines()[1:]
    assert message.strip().startswith(f"{tmp_path / task}.jsonl, line 2: {problem}")


def test_only_a_newline_ends_a_line_of_json(tmp_path: Path):
    """JSON allows Unicode's other line ends unescaped inside strings."""
    row = {"goal": "one\u2028two\x85three", "sol1": "a", "sol2": "b", "label": 0}
    check_folder(write(tmp_path, "piqa", *[json.dumps(row, ensure_ascii=False)] * 2), ["piqa"])


def test_one_item_alone_is_refused(tmp_path: Path):
    """The harness gives N/A for its standard error."""
    with pytest.raises(ValueError, match=r"piqa\.jsonl has one item, which leaves accuracy without a standard error"):
        check_folder(write(tmp_path, "piqa", changed("piqa")), ["piqa"])


def test_data_sets_out_of_reach_are_answered_with_the_way_out(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"the data sets of \['piqa'\] cannot be had: .* set evaluate\.source to folder"
    ):
        accuracy(tiny.llama(), tiny.tokenizer(), ["piqa"], None, 1, 4, tmp_path)


def test_all_files_are_checked_at_once(tmp_path: Path):
    write(tmp_path, "piqa", "{", changed("piqa"), "[]")
    (tmp_path / "arc_easy.jsonl").write_text("")
    with pytest.raises(ValueError, match="evaluate") as caught:
        check_folder(tmp_path, ["piqa", "arc_easy", "winogrande"])
    message = str(caught.value)
    assert all(
        part in message
        for part in ("line 1: not JSON", "line 3", "arc_easy.jsonl is empty", "winogrande.jsonl does not exist")
    )


def test_many_problems_are_cut_short_and_counted(tmp_path: Path):
    with pytest.raises(ValueError, match="and 10 more") as caught:
        check_folder(write(tmp_path, "piqa", *["{"] * 30), ["piqa"])
    assert len(str(caught.value).splitlines()) == 22


def test_a_malformed_folder_is_refused_before_the_harness_starts(tmp_path: Path):
    with pytest.raises(ValueError, match="line 1: not JSON"):
        accuracy(tiny.llama(), tiny.tokenizer(), ["piqa"], write(tmp_path, "piqa", "{"), 0, 4, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_what_was_read_and_asked_is_told_by_hashes(small: Path, harness_run: HarnessRun, tmp_path: Path):
    read = harness_run[2]
    assert {*read} == {f"{what}.{task}" for what in ("benchmark", "items") for task in TASKS}
    assert read["benchmark.piqa"] == contract.sha256(small / "piqa.jsonl")
    part = accuracy(tiny.llama(), tiny.tokenizer(), ["piqa"], small, 2, 4, tmp_path / "tables")[2]
    assert part["benchmark.piqa"] == read["benchmark.piqa"]
    assert part["items.piqa"] != read["items.piqa"], "fewer items were asked"
