"""Scores worked out again, against the code that evaluate scores with."""

import json
import math
from pathlib import Path

import pytest
from torch import Tensor

from pipeline import models
from pipeline.audit import numbers
from pipeline.bench import agreement, items, text
from stages.evaluate import sizes
from tests import tiny


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"3", b'{"kl": "0.12"}', b'{"kl": null}', b'{"kl": true}', b'{"kl": {"a": 1}}', b"\xff"],
)
def test_what_holds_no_numbers_by_name_is_none(content: bytes | None):
    assert numbers.read(content) is None


def test_numbers_are_read():
    assert numbers.read(b'{"kl": 0.5, "bytes": 3}') == {"kl": 0.5, "bytes": 3.0}
    assert numbers.read(b"{}") == {}


def test_scores_of_text_and_agreement_follow_from_their_documents(tokens: Tensor, valid: Tensor):
    """To the digits in which they are compared."""
    model, teacher = tiny.llama(), tiny.llama()
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    scores, rows = text.perplexity(model, tokens, lambda: None)
    agreed, more = agreement.agreement(model, teacher, tokens, valid, lambda: None)
    found = numbers.of_items(items.Items(items.answers([]), items.documents(rows + more)))
    assert found.keys() == scores.keys() | agreed.keys()
    for name, value in (scores | agreed).items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
        assert value > 0


def test_accuracy_and_its_error_are_those_of_the_harness():
    """A mean's standard error is as lm-eval's own function has it; that of the mean over tasks is by hand."""
    from lm_eval.api.metrics import mean_stderr

    right = {"a": [1, 0, 1, 1, 0], "b": [0, 0, 1], "one": [1]}
    rows = [
        {"task": task, "item": i, "hash": f"{task}{i}", "prediction": 0, "correct": bool(each), "log_likelihoods": []}
        for task, values in right.items()
        for i, each in enumerate(values)
    ]
    found = numbers.of_items(items.Items(items.answers(rows), items.documents([])))
    for task in ("a", "b"):
        assert found[f"accuracy.{task}"] == pytest.approx(sum(right[task]) / len(right[task]))
        assert found[f"accuracy.{task}.stderr"] == pytest.approx(mean_stderr(right[task]))
    assert found["accuracy"] == pytest.approx((3 / 5 + 1 / 3 + 1) / 3)
    assert math.isnan(found["accuracy.one.stderr"])
    assert math.isnan(found["accuracy.stderr"])
    without = numbers.of_items(
        items.Items(items.answers([row for row in rows if row["task"] != "one"]), items.documents([]))
    )
    assert without["accuracy.stderr"] == pytest.approx(math.hypot(mean_stderr(right["a"]), mean_stderr(right["b"])) / 2)


def test_sizes_are_those_that_evaluate_counts(teacher_folder: Path, tmp_path: Path):
    """Of the teacher from its tensors, tied ones once; of an export as its manifest says."""
    model = models.load_model(teacher_folder)
    manifest = {"kind": "teacher", "facts": {}}
    for file in teacher_folder.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    expected = sizes(teacher_folder, model, {})
    assert numbers.of_model(tmp_path) == pytest.approx(expected)
    facts = {"bits_per_weight": 8.2, "bits_per_quantized_weight": 4.02, "weight_bytes": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "facts": facts}))
    assert numbers.of_model(tmp_path) == pytest.approx(sizes(teacher_folder, model, facts))
    with pytest.raises(OSError, match="manifest"):
        numbers.of_model(tmp_path / "nothing")
