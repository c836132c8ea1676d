"""What lm-eval makes of answers in writing: of planted ones, and of a true model's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pipeline.corpus import decoding
from pipeline.evaluation import items, task_files, written_answers
from pipeline.evaluation.harness import answers
from pipeline.evaluation.scores import of_answers
from pipeline.evaluation.tasks import preamble
from pipeline.evaluation.writing import Script
from tests import tiny

QUESTIONS = [
    {"question": f"What is {i} times 9?", "answer": f"It is <<9*{i}>>.\n#### {9 * i:,}"} for i in (2, 3, 200, 5)
]
PLANTED = ("9 and 9 is 18. The answer is 18.\n\nQ: What is 1?\nA: It is 1.", "#### 28", "It is $1,800.", "no number")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return tmp_path


def long_llama() -> PreTrainedModel:
    """Whose context holds the shots, a byte a token."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=8192, eos_token_id=2)  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


class Planted(HFLM):
    """lm-eval's own model, which writes what it is told, as far as lm-eval lets it."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [text.split(request.args[1]["until"][0])[0] for text, request in zip(PLANTED, requests, strict=True)]


def test_a_number_is_judged_as_lm_eval_judges_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of planted answers: the last number before another question, commas and currency aside."""
    asked_texts = list[str]()

    def write(model: Any, way: str, said: Any, limit: int, *rest: Any) -> list[Script]:
        texts = [tiny.tokenizer().decode(tokens) for (tokens,) in said]
        asked_texts.extend(texts)
        order = [next(i for i, row in enumerate(QUESTIONS) if row["question"] in text) for text in texts]
        answers = [tiny.tokenizer()(PLANTED[i], add_special_tokens=False)["input_ids"] for i in order]
        return [Script([], [1, *tokens], [0] + [1] * len(tokens), [False]) for tokens in answers]

    monkeypatch.setattr(written_answers.writing, "write", write)
    rows, read = answers(long_llama(), tiny.tokenizer(), ["gsm8k"], folder, 0, 4, tmp_path / "tables")
    scores = of_answers(items.answers(rows))
    assert [row["correct"] for row in rows] == [True, False, True, False]
    assert scores["accuracy.gsm8k"] == 0.5
    assert {*read} == {"benchmark.gsm8k", "items.gsm8k"}
    last = QUESTIONS[-1]["question"]
    assert f"{preamble('gsm8k')}Q: {last}\nA:" in asked_texts
    assert preamble("gsm8k").count("The answer is") == 8

    files = tmp_path / "files"
    files.mkdir()
    task_files.write(files, {"gsm8k": folder / "gsm8k.jsonl"})
    theirs = lm_eval.simple_evaluate(
        model=Planted(pretrained=tiny.llama(), tokenizer=tiny.tokenizer(), batch_size=1),
        tasks=["permafrost_gsm8k"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(files), include_defaults=False),
        bootstrap_iters=0,
    )
    assert theirs["results"]["permafrost_gsm8k"]["exact_match,flexible-extract"] == scores["accuracy.gsm8k"]
    assert theirs["results"]["permafrost_gsm8k"]["exact_match,strict-match"] == 0.25, "which asks for words of its own"


def test_an_answer_in_writing_has_no_likelihoods_and_no_part_in_the_mean(folder: Path, tmp_path: Path):
    """By a true model, beside a task with choices."""
    tasks = ["gsm8k", "agreement"]
    rows, _ = answers(
        long_llama(), tiny.tokenizer(), tasks, folder, 2, 4, tmp_path / "tables", made=4, way=next(iter(decoding.WAYS))
    )
    scores = of_answers(items.answers(rows))
    table = items.answers(rows)
    mine = table[table["task"] == "gsm8k"]
    assert [*mine["item"]] == [0, 1]
    assert mine["hash"].nunique() == 2
    assert {*mine["log_likelihoods"].map(len)} == {*mine["probabilities"].map(len)} == {0}
    assert {*mine["answer"]} == {-1}
    assert mine["right_probability"].isna().all()
    assert {(row.group, row.part) for row in mine.itertuples()} == {("emergent", "multi-step")}
    assert scores["accuracy"] == scores["accuracy.agreement"] == scores["accuracy.basic"]
    assert scores["accuracy.gsm8k"] == mine["correct"].mean()
    alone = of_answers(
        items.answers(answers(long_llama(), tiny.tokenizer(), ["gsm8k"], folder, 2, 4, tmp_path / "tables")[0])
    )
    assert {*alone} == {"accuracy.gsm8k", "accuracy.gsm8k.stderr"}


SAID = [
    ({"prompt": "No comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, "Well, no", False),
    ({"prompt": "Two words.", "instruction_id_list": ["length_constraints:number_words"],
      "kwargs": [{"relation": "at least", "num_words": 2}]}, "Well done", True),
    ({"prompt": "Both.", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
      "kwargs": [{}, {"relation": "at least", "num_sentences": 3}]}, "One. Two.", False),
    ({"prompt": "English.", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]},
     "This is an English sentence about the weather in London.", True),
]  # fmt: skip


def test_an_instruction_is_judged_as_lm_eval_judges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the packages are that judge it; sentences are split by rules without abbreviations."""
    pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    import nltk
    from nltk.tokenize import punkt

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    (tmp_path / "tokenizers/punkt_tab").mkdir(parents=True)
    punkt.save_punkt_params(punkt.PunktParameters(), str(tmp_path / "tokenizers/punkt_tab/english"))
    (tmp_path / "ifeval.jsonl").write_text(
        "".join(json.dumps({"key": i, **row}) + "\n" for i, (row, _, _) in enumerate(SAID))
    )
    written = {row["prompt"]: text for row, text, _ in SAID}
    monkeypatch.setattr(
        written_answers, "write", lambda engine, way, questions, advance: [written[one.text] for one in questions]
    )
    rows, _ = answers(long_llama(), tiny.tokenizer(), ["ifeval"], tmp_path, 0, 4, tmp_path / "tables")
    scores = of_answers(items.answers(rows))
    assert [row["correct"] for row in rows] == [followed for _, _, followed in SAID]
    assert scores["accuracy.ifeval"] == 0.5
    from lm_eval.tasks.ifeval import utils

    for (row, text, followed), kept in zip(SAID, rows, strict=True):
        theirs = utils.test_instruction_following_strict(SimpleNamespace(key=0, **row), text)
        assert theirs.follow_all_instructions == followed == kept["correct"]
