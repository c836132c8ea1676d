"""What every point of a sweep answered: one table, which a point needs to be finished."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.artifacts import contract
from pipeline.evaluation import items
from pipeline.flow import results
from pipeline.report import sweep_files
from tests.unit.flow.test_results import CURVES, FINISHED, RUNS, SCORES, Files, sweep


def answered(scheme: str, right: list[bool]) -> pd.DataFrame:
    """What a point of this scheme answered to items of one task."""
    told = {"scheme": scheme, "method": "rtn", "rotation": "none", "bits_w": 4, "bits_a": 0, "bits_kv": 0}
    answers = {
        "task": "piqa",
        "item": range(len(right)),
        "correct": right,
        "log_likelihoods": [[-1.0, -2.0]] * len(right),
    }
    return pd.DataFrame(answers).assign(**told)[[*told, *answers]]


def compared(right: list[bool]) -> pd.DataFrame:
    """Tokens of held-out text, of what was said to the teacher, and of its two answers in two conversations."""
    rows = [("held_out", 0, 3, 0, False), ("dialogue", 4, 2, 0, False)]
    rows += [("dialogue", 4, 7, 1, right[1]), ("dialogue", 5, 9, 2, right[0]), ("dialogue", 5, 10, 2, True)]
    rows += [("dialogue", 4, 8, 1, right[0])]
    return items.tokens(dict(zip(items.TOKENS, (*row[:4], 0.1, row[4]), strict=True)) for row in rows)


def test_the_answers_of_all_points_are_one_table_with_the_reference_once(tmp_path: Path):
    kept = sweep(tmp_path, items="data/items/ptq", reference="data/items/teacher")
    pairs = {name: (answered(f"W{i}", [True, False]), answered("", [True, True])) for i, name in enumerate(FINISHED)}
    finished = {name: replace(original, answers=pairs[name]) for name, original in FINISHED.items()}
    results.write(kept, RUNS, finished)
    table = pd.read_parquet(tmp_path / "s/answers.parquet")
    assert [*table["point"].unique()] == ["teacher", *FINISHED]
    assert [*table][:7] == [*sweep_files.OF_POINT]
    assert len(table) == 2 * 4
    lineage = sweep_files.load(tmp_path / "s").lineage
    assert lineage["answers"] == contract.sha256(tmp_path / "s/answers.parquet")
    known = results.recorded(kept)
    for name, (own, reference) in pairs.items():
        assert known[name].answers is not None
        for there, was in zip(known[name].answers, (own, reference), strict=True):
            assert there.drop(columns="log_likelihoods").equals(was.drop(columns="log_likelihoods"))
    before = {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()}
    results.write(kept, RUNS, known)
    assert {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()} == before


def test_a_point_whose_answers_are_not_here_is_not_finished(tmp_path: Path):
    kept = sweep(tmp_path, items="data/items/ptq", reference="data/items/teacher")
    pair = (answered("W4", [True, False]), answered("", [True, True]))
    results.write(kept, RUNS, {name: replace(original, answers=pair) for name, original in FINISHED.items()})
    file = tmp_path / "s/answers.parquet"
    table, (first, *others) = pd.read_parquet(file), FINISHED
    table[table["point"] != first].to_parquet(file)
    assert [*results.recorded(kept)] == others
    file.unlink()
    assert results.recorded(kept) == {}
    file.write_text("nothing")
    with pytest.raises(ValueError, match=r"answers\.parquet is damaged .*remove it"):
        results.recorded(kept)


def test_a_points_answers_are_told_by_its_params(monkeypatch: pytest.MonkeyPatch):
    scheme = "{weights: {bits: 4, symmetric: true, group: 0}, activations: {bits: 8, symmetric: true, dynamic: true, "
    scheme += "observer: split, percentile: 99.99}, kv_cache: {bits: 2, symmetric: true, group: 0}}"
    files = Files(SCORES, CURVES)
    files.texts["params.yaml"] = f"scheme: {scheme}\ncalibrate: {{method: awq, rotation: hadamard}}\n"
    for folder, right in (("ptq", [True, False]), ("teacher", [True, True])):
        rows = answered("", right)[["task", "item", "correct", "log_likelihoods"]]
        files.bytes_[f"data/items/{folder}/answers.parquet"] = rows.to_parquet()
        files.bytes_[f"data/items/{folder}/tokens.parquet"] = compared(right).to_parquet()
    monkeypatch.setattr(results, "DVCFileSystem", lambda root, rev: files)
    kept = sweep(Path(), items="data/items/ptq", reference="data/items/teacher")
    pair = results.read(Path(), "0123", kept).answers
    assert pair is not None
    own, reference = pair
    told = own.iloc[0][[*sweep_files.OF_POINT[2:]]].tolist()
    assert told == ["awq", "hadamard", 4, 8, 2]
    assert own["scheme"].iloc[0].startswith('{"weights": {"bits": 4,')
    assert reference.iloc[0][[*sweep_files.OF_POINT[1:]]].tolist() == ["", "", "", 0, 0, 0]
    assert own["correct"].tolist() == [True, False, False, True]
    said = own[own["task"] == "conversations"]
    assert said[["item", "hash", "group", "part", "cluster", "level"]].to_numpy().tolist() == [
        [0, "4:1", "dialogue", "conversations", 4, "turn 1"],
        [1, "5:2", "dialogue", "conversations", 5, "turn 2"],
    ]
    assert said["right_probability"].tolist() == [0.5, 1.0]
    assert reference[reference["task"] == "conversations"]["correct"].tolist() == [True, True]
