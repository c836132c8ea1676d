"""What verify measures itself, and what it says that it could not check."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import dvc_hashes
from pipeline.audit import recomputed, verify
from pipeline.audit.finding import Finding
from pipeline.audit.locks import Lock, Stage
from pipeline.audit.versions import Version
from pipeline.evaluation import items
from pipeline.export.formats import export
from stages.evaluate import sizes
from tests import tiny
from tests.unit.export.quantized import quantized

COMMAND = "python -m stages.evaluate --teacher teacher --model int4 --out scores.json --items items"


def version(stage: Stage, **fields: Any) -> Version:
    return Version("workspace", "", "", Lock({stage.name: stage}), {}, {}, {}, **fields)


def scored(root: Path, format_name: str) -> tuple[Version, dict[str, float]]:
    """A project with a teacher, an export and its scores, which are its sizes alone."""
    tiny.save(root / "teacher")
    (root / "int4").mkdir()
    facts = export(quantized("W4"), root / "teacher", format_name, root / "int4")
    items.Items(items.answers([]), items.documents([])).save(root / "items")
    stage = Stage("evaluate@student", COMMAND, {}, {"scores.json": "1", "items": "2.dir"}, {})
    return version(stage), sizes(root / "int4", facts)


def score_findings(root: Path, made: Version, scores: dict[str, float]) -> list[Finding]:
    (root / "scores.json").write_text(json.dumps(scores))
    return list(recomputed.scores(root, made))


def test_sizes_are_measured_whatever_the_manifest_claims(tmp_path: Path):
    made, scores = scored(tmp_path, "compressed-tensors")
    assert score_findings(tmp_path, made, scores) == []
    claimed = {"bits_per_weight": 1.0, "bits_per_quantized_weight": 2.0}
    (tmp_path / "int4/manifest.json").write_text(json.dumps({"facts": claimed}))
    told = score_findings(tmp_path, made, scores | claimed)
    assert [(finding.what, finding.checked) for finding in told] == [("scores.json", True)] * 2
    assert [finding.problem.split(" is ")[0] for finding in told] == sorted(claimed)


def test_a_size_that_the_files_do_not_tell_is_named_as_not_checked(tmp_path: Path):
    made, scores = scored(tmp_path, "dequantized")
    (finding,) = score_findings(tmp_path, made, scores)
    assert not finding.checked
    assert "bits_per_quantized_weight" in finding.problem


def test_a_score_of_which_nothing_tells_is_named_as_not_checked(tmp_path: Path):
    """The lock knows of no items."""
    made, scores = scored(tmp_path, "compressed-tensors")
    del made.lock.stages["evaluate@student"].outs["items"]
    (finding,) = score_findings(tmp_path, made, scores | {"kl": 0.1})
    assert (finding.checked, finding.problem.split(":")[0]) == (False, "kl")


@pytest.mark.parametrize("where", ["project", "cache", "nowhere", "another"])
def test_a_record_is_read_where_it_is_and_missed_where_it_is_not(tmp_path: Path, where: str):
    record = {"libraries": {"torch": "1.0"}}
    content = json.dumps(record).encode()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    stage = Stage("distill", "", {}, {"record.json": md5}, {}, pins={"torch": "2.0"}, environment="record.json")
    if where in ("project", "another"):
        (tmp_path / "record.json").write_bytes(content if where == "project" else content + b" ")
    made = version(stage, environments={"distill": record} if where == "cache" else {})
    (finding,) = verify._recorded(tmp_path, made)
    assert finding.checked == (where in ("project", "cache"))
    assert ("version of torch was 2.0" in finding.problem) == finding.checked
    assert finding.checked or "record.json is neither in the project nor in the cache" in finding.problem


def test_a_stage_that_wrote_no_record_is_named(tmp_path: Path):
    (finding,) = verify._recorded(tmp_path, version(Stage("distill", "", {}, {}, {})))
    assert (finding.what, finding.checked) == ("distill", False)


def test_the_code_of_a_room_is_held_against_the_hash_of_its_folder(tmp_path: Path):
    """A stage writes down each file that it ran; dvc.lock has one hash of the folder."""
    code = {"stages/distill.py": "a1", "pipeline/quant/grid.py": "b2", "pipeline/quant/weights.py": "c3"}
    room = dvc_hashes.folder_md5([("grid.py", "b2"), ("weights.py", "c3")])
    for noted, told in (
        ({"pipeline/quant": room}, []),
        ({"pipeline/quant": "0.dir"}, ["pipeline/quant"]),
        ({"pipeline/quant": room, "pipeline/losses": "1.dir"}, ["pipeline/losses"]),
        ({}, ["pipeline/quant/grid.py", "pipeline/quant/weights.py"]),
    ):
        record = {"libraries": {}, "knobs": {}, "code": code}
        stage = Stage("distill", "", {"stages/distill.py": "a1", "data/text": "2.dir", **noted}, {}, {})
        findings = [*verify._recorded(tmp_path, version(stage, environments={"distill": record}))]
        assert [finding.problem.split(" was ")[0].split("md5 of ")[1] for finding in findings] == told
