"""The first screen's answers, from a summary and the answers of teacher and student."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.evaluation import items
from pipeline.report import answers

SUMMARY = {
    "perplexity.student": 26.0, "perplexity.rtn": 45.0, "perplexity.teacher": 20.0, "kl.student": 0.2, "kl.rtn": 0.6,
    "top1.student": 0.795, "accuracy.student": 0.6, "accuracy.teacher": 0.66,
    "recovered.student": 0.676, "recovered.student.low": 0.61, "recovered.student.high": 0.72,
    "gap.rtn": 0.8, "gap.rtn.p": 0.001,
    "weight_bytes.student": 167e6, "weight_bytes.teacher": 538e6, "weight_bytes.rtn": 110e6,
    "bits_per_weight.student": 9.92, "bits_per_quantized_weight.student": 4.02,
}  # fmt: skip


def answered(correct: dict[str, list[bool]]) -> pd.DataFrame:
    return items.answers(
        {"task": task, "item": i, "hash": f"{task}{i}", "prediction": 0, "correct": right, "log_likelihoods": []}
        for task, rights in correct.items()
        for i, right in enumerate(rights)
    )


BEFORE = {"piqa": [True] * 64, "arc_easy": [True] * 32 + [False] * 32, "winogrande": [True] * 64}
AFTER = {"piqa": [False] * 20 + [True] * 44, "arc_easy": [True] * 30 + [False] * 34, "winogrande": [True] * 64}


FOLDERS = {"compressed-tensors": "data/int4/student/compressed-tensors", "gguf": "data/int4/student/gguf"}


def told(summary: dict[str, float] = SUMMARY, after: dict[str, list[bool]] = AFTER) -> dict[str, answers.Answer]:
    asked = {"teacher": answered(BEFORE), "student": answered(after)}
    first_screen = answers.answers(summary, asked, FOLDERS, True)
    return {answer.question: answer for answer in first_screen}


def test_four_questions_have_short_and_long_answers():
    good, loses, large, runs = told().values()
    assert good.short == "KL 0.200, RTN 0.600"
    assert "68 % (61 to 72) of what round to nearest (RTN) loses is won back" in good.long
    assert all(number in good.long for number in ("26.00", "20.00", "45.00", "79.5 %"))
    assert loses.short == "piqa"
    assert "piqa -31.2 points (-42.6 to -19.9)" in loses.long
    assert large.short == "167 MB"
    assert "31 % of the teacher's 538 MB" in large.long
    assert "9.92 bits a weight" in large.long
    assert "Perplexity is 30 % above the teacher's." in loses.long
    assert runs.short == "Yes, from_pretrained loads it, llama.cpp runs it"
    assert runs.long.startswith("data/int4/student/compressed-tensors: plain transformers reads it, the weights packed")
    assert "data/int4/student/gguf: llama.cpp runs it" in runs.long
    assert "other runtimes do that in ways of their own" in runs.long


def test_changes_are_paired_by_task_with_the_largest_loss_first_and_mcnemars_p():
    first, second, third = answers.task_changes(answered(BEFORE), answered(AFTER))
    assert [(c.task, c.difference) for c in (first, second, third)] == [
        ("piqa", -20 / 64),
        ("arc_easy", -2 / 64),
        ("winogrande", 0),
    ]
    assert first.p == pytest.approx(3 * stats.binomtest(20, 20).pvalue)
    assert second.p == 1
    values = np.r_[-np.ones(20), np.zeros(44)]
    assert first.reach == pytest.approx(1.96 * values.std() / 8, rel=0.001)


def test_a_drop_inside_its_error_is_no_loss_shown():
    near = told(after={**AFTER, "piqa": [False] * 3 + [True] * 61})["Where does it lose?"]
    assert near.short == "no loss shown on any task"
    assert "The largest drop, piqa -4.7 points (-9.9 to +0.5), is not shown as one of 3." in near.long
    assert told(after=BEFORE)["Where does it lose?"].short == "on no task"


def test_a_loss_that_only_the_mean_shows_is_told():
    """Five lost of 64 on each of two tasks: one in 16 of all coins for a task, and 2 of 1,024 for both."""
    after = {
        "piqa": [False] * 5 + [True] * 59,
        "arc_easy": [True] * 32 + [False] * 32,
        "winogrande": [False] * 5 + [True] * 59,
    }
    loses = told(after=after)["Where does it lose?"]
    assert loses.short == "over all tasks, on none alone"
    assert loses.long.startswith("mean accuracy -5.2 points (")
    mean = answers.mean_change(answered(BEFORE), answered(after))
    assert mean.p == pytest.approx(stats.binomtest(10, 10).pvalue)
    assert mean.difference == pytest.approx(-10 / 192)


def test_what_is_answered_in_writing_is_no_part_of_the_mean():
    before, after = ({**rights, "instructions": [start] * 9} for rights, start in ((BEFORE, True), (AFTER, False)))
    mean = answers.mean_change(answered(before), answered(after))
    assert mean == answers.mean_change(answered(BEFORE), answered(AFTER))


def test_where_all_answers_are_written_no_mean_is_told():
    """Of gsm8k alone, whose drop is."""
    right = {"gsm8k": [True] * 20}, {"gsm8k": [False] * 20}
    without = {name: value for name, value in SUMMARY.items() if not name.startswith("accuracy")}
    asked = {"teacher": answered(right[0]), "student": answered(right[1])}
    loses = next(answer for answer in answers.answers(without, asked, FOLDERS, True) if "lose" in answer.question)
    assert loses.short == "gsm8k"
    assert "Mean accuracy" not in loses.long


def test_where_no_task_is_asked_no_loss_is_denied():
    """As of conversations alone."""
    without = {name: value for name, value in SUMMARY.items() if not name.startswith("accuracy")}
    asked = {"teacher": answered({}), "student": answered({})}
    loses = next(answer for answer in answers.answers(without, asked, FOLDERS, True) if "lose" in answer.question)
    assert (loses.short, loses.long) == ("no task was asked", "Perplexity is 30 % above the teacher's.")


def test_of_a_gap_inside_its_error_no_percentage_is_given():
    summary = {name: value for name, value in SUMMARY.items() if not name.startswith("recovered")} | {"gap.rtn.p": 0.4}
    good = told(summary)["Is it good?"].long
    assert "inside its own error (p = 0.4)" in good
    assert "won back" not in good


def test_a_student_worse_than_rounding_is_told_so():
    summary = {**SUMMARY, "recovered.student": -0.3, "recovered.student.low": -0.5, "recovered.student.high": -0.2}
    good = told(summary)["Is it good?"].long
    assert "worse than round to nearest" in good
    assert "won back" not in good
