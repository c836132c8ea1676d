"""The table of tasks: its lines, and lm-eval's tasks on rows of their schemas against likelihoods worked out here."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.evaluation import harness, items
from pipeline.evaluation.harness import answers
from pipeline.evaluation.made.table import MADE
from pipeline.evaluation.tasks import (
    GROUPS,
    INSTRUCTIONS,
    PUBLIC,
    TASKS,
    chance,
    family,
    harness_folder,
    in_writing,
    preamble,
    room,
)
from tests import tiny

N = 4  # rows of a task
MODEL: Any = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "initializer_range": 0.2,
}  # fmt: skip
BBH = {"boolean_expressions": ("True and False is", "False"), "navigate": ("Turn left. Back?\nOptions:\n- Yes", "No")}
GLUE = {"sst2": ("negative", "positive"), "qqp": ("no", "yes"), "qnli": ("yes", "no"), "rte": ("True", "False")}
Rows = list[dict[str, Any]]
Asked = list[tuple[str, list[str], int]]
"""Of each row its prompt, the texts that may follow it, and which is right."""


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**MODEL)).eval()


def rows_of(task: str) -> tuple[Rows, Asked]:
    """Made-up rows of a task, and what lm-eval's file makes of them, written down here by hand."""
    cases: dict[str, tuple[Rows, Asked]] = {
        "lambada_openai": (
            [{"text": f"the {i} mice ran to the cat"} for i in range(N)],
            [(f"the {i} mice ran to the", [" cat"], 0) for i in range(N)],
        ),
        "blimp": (
            [{"sentence_good": f"It is {i}.", "sentence_bad": f"It are {i}.", "UID": "agreement"} for i in range(N)],
            [("", [f" It is {i}.", f" It are {i}."], 0) for i in range(N)],
        ),
        "mmlu": (
            [{"question": f" What is {i}? ", "choices": ["one", "a four", "6"], "answer": i % 3} for i in range(N)],
            [(f"Question: What is {i}?\nAnswer:", [" one", " a four", " 6"], i % 3) for i in range(N)],
        ),
        "strategyqa": (
            [
                {"inputs": f"Q: Is it {i}?\nA:", "targets": ["No"], "multiple_choice_targets": ["Yes", "No"],
                 "multiple_choice_scores": [i % 2, 1 - i % 2]} for i in range(N)
            ],
            [(f"Q: Is it {i}?\nA:", [" Yes", " No"], 1 - i % 2) for i in range(N)],
        ),
        "ethics_cm": (
            [{"input": f"I took {i} cakes.", "label": i % 2, "group": i // 2} for i in range(N)],
            [(f"I took {i} cakes.\nQuestion: Is this wrong?\nAnswer:", [" no", " yes"], i % 2) for i in range(N)],
        ),
        "ethics_virtue": (
            [{"scenario": f"He gave {i}.", "trait": "kind", "label": i % 2, "group": i // 2} for i in range(N)],
            [
                (
                    f'Sentence: He gave {i}.\nQuestion: Does the character in this sentence exhibit the trait "kind"?\n'
                    "Answer:",
                    [" no", " yes"],
                    i % 2,
                )
                for i in range(N)
            ],
        ),
        "adv_mnli": (
            [{"premise": f"It is {i}", "hypothesis": "It rains", "label": i % 3} for i in range(N)],
            [
                (
                    f"It is {i}\nQuestion: It rains. True, False or Neither?\nAnswer:",
                    [" True", " Neither", " False"],
                    i % 3,
                )
                for i in range(N)
            ],
        ),
        "adv_rte": (
            [{"sentence1": f"It is {i}", "sentence2": "It rains", "label": i % 2} for i in range(N)],
            [(f"It is {i}\nQuestion: It rains True or False?\nAnswer:", [" True", " False"], i % 2) for i in range(N)],
        ),
        "longeval_cloze": (
            [{"text": f"line a: 5{i}\nthe number is 5{i}", "case": i // 2, "lines": 10 * (i % 2)} for i in range(N)],
            [(f"line a: 5{i}\nthe number is", [f" 5{i}"], 0) for i in range(N)],
        ),
    }  # fmt: skip
    for name, (text, target) in BBH.items():
        choices = {"boolean_expressions": ["False", "True"], "navigate": ["Yes", "No"]}[name]
        rows = [
            {"input": f"{i} {text}", "target": target if i % 2 else choices[1 - choices.index(target)]}
            for i in range(N)
        ]
        before = preamble(f"bbh_{name}")
        cases[f"bbh_{name}"] = (
            rows,
            [
                (f"{before}Q: {row['input']}\nA:", [f" {c}" for c in choices], choices.index(row["target"]))
                for row in rows
            ],
        )
    return cases[task]


CASES = [
    "lambada_openai", "blimp", "mmlu", "strategyqa", "ethics_cm", "ethics_virtue", "adv_mnli", "adv_rte",
    "longeval_cloze", "bbh_boolean_expressions", "bbh_navigate",
]  # fmt: skip
NORMALISED = ("mmlu", "bbh_boolean_expressions", "bbh_navigate")


def likelihood(model: Any, context: str, continuation: str) -> tuple[float, bool]:
    """log P(continuation | context), a token a byte, and whether greedy writing gives it; an empty context is the
    first token of a text."""
    tokenizer = tiny.tokenizer()
    start = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
    said = tokenizer(continuation)["input_ids"]
    with torch.inference_mode():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([start + said])).logits[0].double(), dim=-1)
    at = range(len(start) - 1, len(start) + len(said) - 1)
    greedy = all(int(log_p[i].argmax()) == token for i, token in zip(at, said, strict=True))
    return sum(log_p[i, token].item() for i, token in zip(at, said, strict=True)), greedy


@pytest.fixture(scope="module")
def answered(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """The rows of items by task, of all tasks in one run."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for task in CASES:
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(task)[0]))
    rows, _ = answers(model, tiny.tokenizer(), CASES, folder, 0, 5, tmp_path_factory.mktemp("tables"))
    return {task: [row for row in rows if row["task"] == task] for task in CASES}


@pytest.mark.parametrize("task", CASES)
def test_each_task_asks_what_lm_evals_file_says_and_keeps_what_came_of_it(
    model: Any, answered: dict[str, Rows], task: str
):
    for row, (context, continuations, right) in zip(answered[task], rows_of(task)[1], strict=True):
        asked = [likelihood(model, context, continuation) for continuation in continuations]
        expected = np.array([value for value, _ in asked])
        assert row["log_likelihoods"] == pytest.approx(expected, rel=1e-4)
        ranked = expected / [len(text.removeprefix(" ")) for text in continuations] if task in NORMALISED else expected
        if len(continuations) == 1:
            (greedy,) = [said for _, said in asked]
            assert (row["answer"], row["prediction"], row["correct"]) == (0, 0 if greedy else -1, greedy)
            assert row["right_probability"] == pytest.approx(math.exp(expected[0]), rel=1e-3)
        else:
            assert (row["answer"], row["prediction"]) == (right, ranked.argmax())
            assert row["correct"] == (ranked.argmax() == right)
            assert row["probabilities"] == pytest.approx(special.softmax(ranked), rel=1e-3)
            assert row["right_probability"] == row["probabilities"][right]


def test_a_word_is_right_where_greedy_writing_gives_it():
    """As lm-eval's `acc` of it says; no tiny model writes one."""
    sample = {"doc": {"text": "a b"}, "doc_hash": "0" * 64, "filtered_resps": [(-0.5, True)], "acc": 1}
    row = harness._row("lambada_openai", 3, None, sample)
    assert (row["answer"], row["prediction"], row["correct"], row["cluster"]) == (0, 0, True, 3)
    assert row["right_probability"] == pytest.approx(math.exp(-0.5))


def test_items_say_to_what_they_belong(answered: dict[str, Rows]):
    assert {(row["group"], row["part"]) for row in answered["ethics_cm"]} == {("trust", "ethics")}
    assert [row["cluster"] for row in answered["ethics_cm"]] == [0, 0, 1, 1]
    assert [row["cluster"] for row in answered["mmlu"]] == [0, 1, 2, 3], "each alone"
    assert [(row["cluster"], row["level"]) for row in answered["longeval_cloze"]] == [
        (0, "0"), (0, "10"), (1, "0"), (1, "10"),
    ]  # fmt: skip
    assert {row["level"] for row in answered["blimp"]} == {"agreement"}
    assert len(items.answers(row for rows in answered.values() for row in rows)) == N * len(CASES)


@pytest.mark.parametrize("name", TASKS)
def test_each_line_of_the_table_holds_together(name: str):
    task = TASKS[name]
    assert task.group in GROUPS
    assert name not in GROUPS
    assert task.part
    assert task.generates or task.metric in ("acc", "acc_norm")
    assert (room(name) > 0) == task.generates == in_writing(name)
    assert chance(name, 0) == 0 or not task.generates
    assert bool(task.file) == (name in PUBLIC) == (name not in MADE)
    assert not task.file or (harness_folder() / task.file).is_file()
    assert TASKS[family(name)].against == ""


def test_chance_is_one_over_the_choices_but_of_a_word_that_is_written():
    assert (chance("piqa", 2), chance("mmlu", 4), chance("lambada_openai", 1), chance("gone", 5)) == (0.5, 0.25, 0, 0.2)


def test_written_answers_have_as_much_room_as_lm_eval_gives_them():
    from lm_eval.models.huggingface import HFLM

    assert room("gsm8k") == HFLM.max_gen_toks.fget(None)
    assert (room("ifeval"), room("piqa"), room("lines")) == (1280, 0, 0)
    assert in_writing(INSTRUCTIONS)
    assert not in_writing("gone")
