"""Scores worked out again, against the code that evaluate scores with."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.audit import numbers
from pipeline.evaluation import agreement, detail, generated, items, text
from pipeline.evaluation.tasks import INSTRUCTIONS
from pipeline.export.formats import export
from pipeline.models import head, saved
from stages.evaluate import sizes
from tests import tiny
from tests.unit.evaluation.recorded import cut, recorded
from tests.unit.export.quantized import quantized


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"3", b'{"kl": "0.12"}', b'{"kl": null}', b'{"kl": true}', b'{"kl": {"a": 1}}', b"\xff"],
)
def test_what_holds_no_numbers_by_name_is_none(content: bytes | None):
    assert numbers.read(content) is None


def test_numbers_are_read():
    assert numbers.read(b'{"kl": 0.5, "bytes": 3}') == {"kl": 0.5, "bytes": 3.0}
    assert numbers.read(b"{}") == {}


def test_scores_of_text_and_agreement_follow_from_their_documents(tokens: Tensor, lengths: Tensor):
    """To the digits in which they are compared."""
    model, teacher = tiny.llama(), tiny.llama()
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    scores, rows = text.perplexity(model, tokens, lambda: None)
    known = recorded(teacher, cut(tokens, lengths), tokens[0], [(tokens[1], torch.arange(20) // 7)])
    compared = agreement.agreement(model, head.of(teacher), known, lambda n: None)
    agreed, more = detail.scores(compared), agreement.by_document(compared, known)
    recomputed = numbers.of_items(items.Items(items.answers([]), items.documents(rows + more), compared))
    assert recomputed.keys() == scores.keys() | agreed.keys()
    for name, value in (scores | agreed).items():
        assert recomputed[name] == pytest.approx(value, rel=1e-9), name
        assert value > 0


def test_scores_of_what_was_written_follow_from_its_table():
    rows = [{"item": i, "hash": "", "text": "", "tokens": 9, "repetition": i / 10, "ended": i > 0} for i in range(3)]
    table = items.written(rows)
    scores = numbers.of_items(items.Items(items.answers([]), items.documents([]), written=table))
    assert scores == generated.of_written(table)
    assert scores["generated.repetition"] == pytest.approx(0.1)
    assert scores["generated.ended"] == pytest.approx(2 / 3)
    assert scores["generated.ended.stderr"] == pytest.approx(1 / 3)


def test_accuracy_and_its_error_are_those_of_the_harness():
    """A mean's standard error is as lm-eval's own function has it; that of the mean over tasks is by hand."""
    from lm_eval.api.metrics import mean_stderr

    right = {"a": [1, 0, 1, 1, 0], "b": [0, 0, 1], "one": [1]}
    rows = [
        {"task": task, "item": i, "hash": f"{task}{i}", "prediction": 0, "correct": bool(answer), "log_likelihoods": []}
        for task, values in right.items()
        for i, answer in enumerate(values)
    ]
    scores = numbers.of_items(items.Items(items.answers(rows), items.documents([])))
    for task in ("a", "b"):
        assert scores[f"accuracy.{task}"] == pytest.approx(sum(right[task]) / len(right[task]))
        assert scores[f"accuracy.{task}.stderr"] == pytest.approx(mean_stderr(right[task]))
    assert scores["accuracy"] == pytest.approx((3 / 5 + 1 / 3 + 1) / 3)
    assert math.isnan(scores["accuracy.one.stderr"])
    assert math.isnan(scores["accuracy.stderr"])
    without = numbers.of_items(
        items.Items(items.answers([row for row in rows if row["task"] != "one"]), items.documents([]))
    )
    written = {
        "task": INSTRUCTIONS,
        "item": 0,
        "hash": "i",
        "prediction": 1,
        "correct": True,
        "log_likelihoods": [],
    }
    with_written = numbers.of_items(items.Items(items.answers([*rows, written]), items.documents([])))
    assert with_written["accuracy.instructions"] == 1
    assert with_written["accuracy"] == scores["accuracy"]
    assert without["accuracy.stderr"] == pytest.approx(math.hypot(mean_stderr(right["a"]), mean_stderr(right["b"])) / 2)


def test_sizes_of_the_teacher_are_those_that_evaluate_counts(teacher_folder: Path, tmp_path: Path):
    """From its tensors, tied ones once."""
    measured = numbers.of_model(teacher_folder, teacher_folder)
    assert measured == pytest.approx(sizes(teacher_folder, {}))
    weights = sum(p.numel() for p in saved.load_model(teacher_folder).parameters())
    assert measured["bits_per_weight"] == 8 * measured["weight_bytes"] / weights
    with pytest.raises(ValueError, match="holds no weights"):
        numbers.of_model(tmp_path, tmp_path / "nothing")


@pytest.mark.parametrize("scheme", ["W4", "groups", "mixed", "embedding", "vocabulary"])
def test_sizes_of_an_export_are_measured_and_come_to_what_it_says_of_itself(
    teacher_folder: Path, tmp_path: Path, scheme: str
):
    """Whatever a manifest claims."""
    facts = export(quantized(scheme), teacher_folder, "compressed-tensors", tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "int4", "facts": {"bits_per_weight": 1.0}}))
    said = sizes(tmp_path, facts)
    assert numbers.of_model(tmp_path, teacher_folder) == pytest.approx(said)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(key for key in tensors if key.endswith("q_proj.weight_scale"))
    save_file({**tensors, name: tensors[name].float()}, tmp_path / "model.safetensors")
    larger = numbers.of_model(tmp_path, teacher_folder)
    assert all(larger[size] > said[size] for size in ("weight_bytes", *numbers.SIZES))


def test_of_weights_that_are_not_packed_the_files_do_not_tell_what_they_would_take(
    teacher_folder: Path, tmp_path: Path
):
    facts = export(quantized("W4"), teacher_folder, "dequantized", tmp_path)
    measured = numbers.of_model(tmp_path, teacher_folder)
    counted = {name: sizes(tmp_path, facts)[name] for name in ("weight_bytes", "bits_per_weight")}
    assert measured == pytest.approx(counted)
