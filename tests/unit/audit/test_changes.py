"""What changed between two versions, kind by kind."""

import json
from dataclasses import replace

import yaml

from pipeline.audit import changes
from pipeline.audit.changes import Change
from tests.unit.audit.conftest import RAN, digest, lock_of


def test_versions_that_are_alike_have_no_changes(files: dict[str, bytes], version):
    assert changes.changes(version("a", files), version("b", files)) == []
    assert changes.summary([]) == "nothing"


def test_each_kind_of_change_is_told_with_the_stages_that_it_touches(files: dict[str, bytes], version):
    other = {**files, "make.py": b"new"}
    knobs = {"seed": 0, "make": {"length": 9, "stop": ""}, "evaluate": {"limit": 3, "more": ""}}
    other["params.yaml"] = yaml.safe_dump(knobs).encode()
    lock = lock_of(other)
    lock["stages"]["make"]["outs"][0]["md5"] = "e" * 32 + ".dir"
    other["dvc.lock"] = yaml.safe_dump(lock).encode()
    differences = changes.changes(version("a", files), version("b", other, pins="2.1"))
    assert differences == [
        Change("knob", "make.length", "8", "9", ("make",)),
        Change("knob", "evaluate.more", "", '""'),
        Change("code", "make.py", digest(b"make")[:8], digest(b"new")[:8], ("make",)),
        Change("artifact", "data/corpus", "c" * 8, "e" * 8, ("make",)),
        Change("library", "torch", "2.0", "2.1", ("make",)),
    ]
    summary = 'make.length: 8 -> 9; evaluate.more: absent -> ""; torch: 2.0 -> 2.1; code of make'
    assert changes.summary(differences) == summary


def test_artifacts_that_change_for_no_reason_are_told(files: dict[str, bytes], version):
    lock = lock_of(files)
    lock["stages"]["make"]["outs"][0]["md5"] = "e" * 32 + ".dir"
    other = {**files, "dvc.lock": yaml.safe_dump(lock).encode()}
    assert changes.summary(changes.changes(version("a", files), version("b", other))) == "artifacts alone: data/corpus"


def test_a_stage_that_is_new_is_told_by_what_it_makes(files: dict[str, bytes], version):
    lock = lock_of(files)
    del lock["stages"]["report"]
    before = {**files, "dvc.lock": yaml.safe_dump(lock).encode()}
    (change,) = changes.changes(version("a", before), version("b", files))
    assert (change.kind, change.what, change.before, change.stages) == (
        "artifact",
        "data/report/summary.json",
        "",
        ("report",),
    )


def test_what_stages_ran_on_is_told_apart_from_what_they_made(files: dict[str, bytes], version):
    """Another processor and another build of the same torch; what was made is the same."""
    ran = {**RAN, "processor": "B", "torch_build": "cu126"}
    other = {**files, "data/ran.json": json.dumps(ran).encode()}
    other["dvc.lock"] = yaml.safe_dump(lock_of(other)).encode()
    differences = changes.changes(version("a", files), version("b", other))
    assert differences == [
        Change("machine", "processor", "A", "B", ("make",)),
        Change("machine", "torch build", "cpu", "cu126", ("make",)),
    ]
    assert changes.summary(differences) == "processor: A -> B (make); torch build: cpu -> cu126 (make)"


def test_a_version_that_did_not_write_down_what_it_ran_on_has_nothing_to_tell(files: dict[str, bytes], version):
    for content in (b"{", b"", b"[1]", b'{"libraries": 3}'):
        other = {**files, "data/ran.json": content}
        other["dvc.lock"] = yaml.safe_dump(lock_of(other)).encode()
        assert changes.changes(version("a", files), version("b", other)) == []
    assert changes.changes(version("a", files), replace(version("b", files), environments={})) == []
