import json
import math
import sys
from pathlib import Path

import pytest

from pipeline.report import summary
from pipeline.report.summary import VARIANTS, bars, rows, summarize, task_names

PERPLEXITY = {"teacher": 20.0, "rtn": 45.0, "ptq": 33.0, "student": 26.0}
METRICS = ("perplexity", "kl", "top1", "accuracy")


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


def test_each_metric_of_each_variant_is_taken_with_its_error():
    scores = scores_with()
    found = summarize(scores)
    for variant in VARIANTS:
        for metric in METRICS if variant != "teacher" else ("perplexity", "accuracy"):
            assert found[f"{metric}.{variant}"] == scores[variant][metric]
            assert found[f"{metric}.{variant}.stderr"] == scores[variant][f"{metric}.stderr"]
        for task in ("piqa", "arc_easy"):
            assert found[f"task.{task}.{variant}"] == scores[variant][f"accuracy.{task}"]
            assert found[f"task.{task}.{variant}.stderr"] == scores[variant][f"accuracy.{task}.stderr"]
        assert found[f"weight_bytes.{variant}"] == scores[variant]["weight_bytes"]
        assert found[f"bits_per_weight.{variant}"] == scores[variant]["bits_per_weight"]
    assert found["bits_per_quantized_weight.student"] == 7.25


def test_a_bar_for_each_variant_of_each_task():
    found = bars(summarize(scores_with()), ["arc_easy", "piqa"])
    assert found[:5] == [*((f"arc_easy, {variant}", 50.0) for variant in VARIANTS), ("piqa, teacher", 70.0)]
    assert found[-1] == ("piqa, student", pytest.approx(55.0))


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
    found = summarize(scores_with(student=student))
    assert found["recovered.student"] == pytest.approx(share)
    assert found["recovered.ptq"] == pytest.approx(math.log(45 / 33) / math.log(45 / 20))
    assert "recovered.rtn" not in found


def test_without_a_gap_nothing_was_recovered():
    found = summarize(scores_with(rtn=20.0))
    assert found["recovered.ptq"] == found["recovered.student"] == 0


def test_the_tasks_are_those_of_the_teacher():
    assert task_names(scores_with()) == ["arc_easy", "piqa"]


def test_the_table_has_a_row_a_variant():
    found = rows(summarize(scores_with()), "gptq")
    header, *body = found
    assert [row[0] for row in body] == ["teacher (float)", "RTN", "PTQ (gptq)", "student"]
    assert all(len(row) == len(header) for row in body)
    student = dict(zip(header, body[-1], strict=True))
    assert student == {
        "": "student", "perplexity": "26.00 ± 3.50", "gap won back": "67.6 %", "KL": "0.300 ± 0.030",
        "top-1 %": "70.0 ± 6.0", "accuracy %": "45.0 ± 1.3", "bits/weight": "29.00", "MB": "1",
    }  # fmt: skip
    assert dict(zip(header, body[0], strict=True))["KL"] == "-"


@pytest.mark.parametrize("rtn", [19.0, 20.0])
def test_where_rtn_is_no_worse_than_the_teacher_the_table_says_nothing_of_a_gap(rtn: float):
    header, *body = rows(summarize(scores_with(rtn=rtn)), "gptq")
    assert [dict(zip(header, row, strict=True))["gap won back"] for row in body] == ["-"] * 4


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
