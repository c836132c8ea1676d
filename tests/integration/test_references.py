"""The stage references at its true entry point, and evaluate on what it made."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.evaluation.items import Items
from pipeline.evaluation.references import DIALOGUE, References
from tests.integration.conftest import Stage, change_params, run_stage

INPUTS = {"teacher": "data/teacher", "corpus": "data/corpus"}
TEACHER = {"teacher": "data/teacher", "references": "data/references", "model": "data/teacher"}


def test_the_teacher_agrees_with_itself_and_the_variants_do_not(pipeline: Path) -> None:
    teacher, student, rtn = (
        json.loads((pipeline / f"data/scores/{variant}.json").read_text()) for variant in ("teacher", "student", "rtn")
    )
    for name in ("kl", "kl.max", "long.kl", "dialogue.kl"):
        assert abs(teacher[name]) < 1e-6
        assert rtn[name] > 1e-4
    assert (teacher["top1"], teacher["dialogue.divergence.never"]) == (1.0, 1.0)
    assert student["kl"] < rtn["kl"]
    assert {"accuracy.instructions", "generated.ended.stderr", "long.kl.at.1023"} <= teacher.keys()
    items = Items.load(pipeline / "data/items/student")
    assert {*items.tokens["text"]} == {"held_out", "long", "dialogue"}
    assert len(items.written) == 4


def test_what_it_keeps_covers_what_the_knobs_ask_for(pipeline: Path) -> None:
    known = References.load(pipeline / "data/references")
    lengths = pd.Series(dict.fromkeys(("held_out", "long", "dialogue"), 0))
    for document in known.documents:
        lengths[document.text] += 1
        assert document.text != "long" or len(document.tokens) == 300
        assert document.text != DIALOGUE or document.turns.max() == 2
    assert lengths.tolist() == [6, 1, 3]
    assert known.states[:1].shape == (1, 32)


def test_the_same_inputs_give_the_same_bytes(desk: Path) -> None:
    for out in ("made/one", "made/two"):
        done = run_stage(desk, "references", **INPUTS, out=out)
        assert done.returncode == 0, done.stderr
    assert "6 held-out sequences, 300 tokens of long text, 3 conversations in plain words" in done.stdout
    files = [desk / folder / "references.safetensors" for folder in ("made/one", "made/two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_texts_beyond_the_models_context_are_refused_before_any_work(refused: Stage) -> None:
    message = refused("references", {"references.long": 513, "references.tokens": 500}, **INPUTS)
    assert message.startswith("references: references.long: 513 tokens are more than the 512 of the model's context")
    assert "references.tokens, with what is said before the answers: 1" in message


def test_a_text_that_is_too_short_and_knobs_of_one(refused: Stage, desk: Path) -> None:
    assert "references.dialogues: 1 is too few" in refused("references", {"references.dialogues": 1}, **INPUTS)
    (desk / "data/benchmarks/short.jsonl").write_text(json.dumps({"text": "Too short."}) + "\n")
    knobs = {"references.dialogues": 2, "references.long": 400, "evaluate.text": "short"}
    assert "references.long asks for 400 tokens, the text has 10" in refused("references", knobs, **INPUTS)


@pytest.mark.parametrize("without", ["long", "dialogues"])
def test_each_of_the_texts_can_be_left_out(desk: Path, without: str) -> None:
    change_params(desk, {"references": {without: 0}, "evaluate": {"instructions": 0}})
    done = run_stage(desk, "references", **INPUTS, out="made/references")
    assert done.returncode == 0, done.stderr
    paths = {**TEACHER, "references": "made/references", "items": "made/items"}
    done = run_stage(desk, "evaluate", **paths, out="made/scores.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((desk / "made/scores.json").read_text())
    there = {name.partition(".")[0] for name in scores}
    assert ("long" in there, "dialogue" in there) == (without != "long", without != "dialogues")
    assert "generated" not in there
    assert scores["kl"] == pytest.approx(0, abs=1e-6)
