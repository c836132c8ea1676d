import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import items
from pipeline.report import summary
from pipeline.report.summary import VARIANTS, bars, rows, task_names

PERPLEXITY = {"teacher": 20.0, "rtn": 45.0, "ptq": 33.0, "student": 26.0}
METRICS = ("perplexity", "kl", "top1", "accuracy")
WINDOWS = 16


def scores_with(**perplexity: float) -> dict[str, dict[str, float]]:
    """Four variants' scores on two tasks, every number of them another."""
    scores = {}
    for i, variant in enumerate(VARIANTS):
        value = {**PERPLEXITY, **perplexity}[variant]
        scores[variant] = {
            "perplexity": value, "perplexity.stderr": 0.5 + i, "log_perplexity": math.log(value),
            "kl": 0.1 * i, "kl.stderr": 0.01 * i, "top1": 1 - 0.1 * i, "top1.stderr": 0.02 * i,
            "accuracy": 0.6 - 0.05 * i, "accuracy.stderr": 0.01 + 0.001 * i,
            "accuracy.piqa": 0.7 - 0.05 * i, "accuracy.piqa.stderr": 0.03,
            "accuracy.arc_easy": 0.5, "accuracy.arc_easy.stderr": 0.04,
            "weight_bytes": 1e6 * (4 - i), "bits_per_weight": 32.0 - i, "bits_per_quantized_weight": 4.25 + i,
        }  # fmt: skip
    return scores


def documents_with(spread: float = 0.05, **perplexity: float) -> dict[str, pd.DataFrame]:
    """Windows whose mean loss is each perplexity's logarithm, with noise of their own in each variant, and a level that
    all of them share."""
    random = np.random.default_rng(0)
    level, documents = random.normal(0, 0.3, WINDOWS), {}
    for variant in VARIANTS:
        noise = level + random.normal(0, spread, WINDOWS)
        losses = math.log({**PERPLEXITY, **perplexity}[variant]) + noise - noise.mean()
        documents[variant] = items.documents(
            {"measure": "log_perplexity", "document": i, "hash": f"w{i}", "tokens": 9, "value": loss}
            for i, loss in enumerate(losses)
        )
    return documents


def summarize(scores: dict, spread: float = 0.05) -> dict[str, float]:
    """Of scores and of windows that they are scores of."""
    return summary.summarize(scores, documents_with(spread, **{v: scores[v]["perplexity"] for v in VARIANTS}))


def test_each_metric_of_each_variant_is_taken_with_its_error():
    scores = scores_with()
    metrics = summarize(scores)
    for variant in VARIANTS:
        for metric in METRICS if variant != "teacher" else ("perplexity", "accuracy"):
            assert metrics[f"{metric}.{variant}"] == scores[variant][metric]
            assert metrics[f"{metric}.{variant}.stderr"] == scores[variant][f"{metric}.stderr"]
        for task in ("piqa", "arc_easy"):
            assert metrics[f"task.{task}.{variant}"] == scores[variant][f"accuracy.{task}"]
            assert metrics[f"task.{task}.{variant}.stderr"] == scores[variant][f"accuracy.{task}.stderr"]
        assert metrics[f"weight_bytes.{variant}"] == scores[variant]["weight_bytes"]
        assert metrics[f"bits_per_weight.{variant}"] == scores[variant]["bits_per_weight"]
    assert metrics["bits_per_quantized_weight.student"] == 7.25


def test_where_all_answers_are_written_there_is_no_mean_accuracy():
    scores = scores_with()
    for mine in scores.values():
        for name in [name for name in mine if name.startswith("accuracy")]:
            value = mine.pop(name)
            if "piqa" in name:
                mine[name.replace("piqa", "gsm8k")] = value
    metrics = summarize(scores)
    assert {name for name in metrics if name.startswith("accuracy")} == set()
    assert metrics["task.gsm8k.rtn"] == scores["rtn"]["accuracy.gsm8k"]
    assert [row[5] for row in rows(metrics, "gptq")] == ["accuracy %", "-", "-", "-", "-"]
    del scores["teacher"]["perplexity"]
    with pytest.raises(KeyError):
        summarize(scores)


def test_where_no_task_is_asked_there_is_no_accuracy():
    scores = {
        variant: {name: value for name, value in mine.items() if not name.startswith("accuracy")}
        for variant, mine in scores_with().items()
    }
    metrics = summarize(scores)
    assert metrics["kl.student"] == scores["student"]["kl"]
    assert [name for name in metrics if "accuracy" in name or name.startswith(("task.", "group."))] == []


def test_a_bar_for_each_variant_of_each_task():
    heights = bars(summarize(scores_with()), ["arc_easy", "piqa"])
    assert heights[:5] == [*((f"arc_easy, {variant}", 50.0) for variant in VARIANTS), ("piqa, teacher", 70.0)]
    assert heights[-1] == ("piqa, student", pytest.approx(55.0))


def test_the_summary_is_flat_and_finite():
    assert all(isinstance(value, float) and math.isfinite(value) for value in summarize(scores_with()).values())
    json.dumps(summarize(scores_with()), allow_nan=False)


def test_the_teacher_is_not_compared_with_itself():
    assert not {"kl.teacher", "top1.teacher", "recovered.teacher"} & summarize(scores_with()).keys()


@pytest.mark.parametrize(
    ("student", "share"),
    [(20.0, 1.0), (45.0, 0.0), (30.0, 0.5), (67.5, -0.5), (40 / 3, 1.5)],
)
def test_recovered_is_the_share_of_the_gap_in_log_perplexity(student: float, share: float):
    """Teacher 20 and rtn 45 lie apart by a factor of 2.25, whose square root is 1.5."""
    metrics = summarize(scores_with(student=student))
    assert metrics["recovered.student"] == pytest.approx(share)
    assert metrics["recovered.ptq"] == pytest.approx(math.log(45 / 33) / math.log(45 / 20))
    assert "recovered.rtn" not in metrics


def test_a_share_has_an_interval_from_the_paired_windows():
    """Windows apart in level alone: the share is the same in each, and its interval is narrow; noise widens it."""
    near, far = (summarize(scores_with(), spread) for spread in (0.002, 0.1))
    for metrics in (near, far):
        for variant in ("ptq", "student"):
            share = metrics[f"recovered.{variant}"]
            assert metrics[f"recovered.{variant}.low"] < share < metrics[f"recovered.{variant}.high"]
    assert near["recovered.student.high"] - near["recovered.student.low"] < 0.01
    assert 0.05 < far["recovered.student.high"] - far["recovered.student.low"] < 0.5
    assert near["gap.rtn"] == pytest.approx(math.log(45 / 20))
    assert near["gap.rtn.p"] < 0.001


@pytest.mark.parametrize("rtn", [20.0, 19.0, 20.5])
def test_of_a_gap_that_is_none_or_inside_its_error_there_is_no_share(rtn: float):
    """At 20.5 against 20 and this noise, a share would be some 495 %."""
    metrics = summarize(scores_with(rtn=rtn, student=18.0), 0.3)
    assert not [name for name in metrics if name.startswith("recovered")]
    assert metrics["gap.rtn"] == pytest.approx(math.log(rtn / 20))
    assert metrics["gap.rtn.p"] >= 0.05 or rtn < 20
    note = summary.gap_note(metrics)
    assert ("no gap to win back" in note) == (rtn < 20)
    assert ("inside its own error (p = " in note) == (rtn >= 20)
    assert summary.gap_note(summarize(scores_with())) == ""


def test_scores_of_different_texts_are_refused_and_what_differs_is_named():
    scores = scores_with()
    read = {"text": "ab12", "held_out": "cd34", "benchmark.piqa": "baber/piqa@142f6d7"}
    for variant in VARIANTS:
        scores[variant]["read"] = dict(read)  # type: ignore[assignment]
    assert summarize(scores)["recovered.ptq"]
    scores["rtn"]["read"] = {**read, "text": "ef56"}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="text is ab12 for teacher, ef56 for rtn, ab12 for ptq") as caught:
        summarize(scores)
    assert "dvc repro" in str(caught.value)
    assert "held_out" not in str(caught.value)
    del scores["student"]["read"]
    with pytest.raises(ValueError, match="the scores of student do not say what they were read from"):
        summarize(scores)


def test_windows_that_are_not_the_same_are_refused():
    """Scores that do not say what they were read from have their windows' hashes."""
    documents = documents_with()
    documents["ptq"] = documents["ptq"].assign(hash=[f"v{i}" for i in range(WINDOWS)])
    with pytest.raises(ValueError, match="not measured on the same windows: ptq against teacher"):
        summary.summarize(scores_with(), documents)


def test_the_tasks_are_those_of_the_teacher():
    assert task_names(scores_with()) == ["arc_easy", "piqa"]


def test_the_table_has_a_row_a_variant():
    header, *body = rows(summarize(scores_with()), "gptq")
    assert [row[0] for row in body] == ["teacher (float)", "RTN", "PTQ (gptq)", "student"]
    assert all(len(row) == len(header) for row in body)
    student = dict(zip(header, body[-1], strict=True))
    assert student == {
        "": "student", "perplexity": "26.00 ± 3.50", "gap won back": "67.6 % (64 to 72)", "KL": "0.300 ± 0.030",
        "top-1 %": "70.0 ± 6.0", "accuracy %": "45.0 ± 1.3", "bits/weight": "29.00", "MB": "1",
    }  # fmt: skip
    assert dict(zip(header, body[0], strict=True))["KL"] == "-"


@pytest.mark.parametrize("rtn", [19.0, 20.0])
def test_where_rtn_is_no_worse_than_the_teacher_the_table_says_nothing_of_a_gap(rtn: float):
    header, *body = rows(summarize(scores_with(rtn=rtn)), "gptq")
    assert [dict(zip(header, row, strict=True))["gap won back"] for row in body] == ["-"] * 4


def test_a_summary_without_intervals_is_shown_as_it_is():
    old = {name: value for name, value in summarize(scores_with()).items() if not name.endswith((".low", ".high"))}
    header, *body = rows({name: value for name, value in old.items() if not name.startswith("gap")}, "gptq")
    assert dict(zip(header, body[-1], strict=True))["gap won back"] == "67.6 %"


def test_the_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(summarize(scores_with())))
    monkeypatch.setattr(sys, "argv", ["summary", str(file)])
    summary.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert "26.00 ± 3.50" in lines[-1]


def test_the_command_says_where_the_gap_is_inside_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(summarize(scores_with(rtn=20.5), 0.3)))
    monkeypatch.setattr(sys, "argv", ["summary", str(file)])
    summary.main()
    printed = capsys.readouterr().out
    assert "inside its own error" in printed
    assert "%" not in printed.replace("top-1 %", "").replace("accuracy %", "")
