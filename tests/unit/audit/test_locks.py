"""What dvc.lock says: which stages no longer fit, and what a thing was made from."""

import pytest
import yaml

from pipeline.audit import locks
from tests.unit.audit.conftest import Memory, digest, lock_of


def stale(files: dict[str, bytes]) -> dict[str, list[str]]:
    tree = Memory(files)
    return locks.load(tree).stale(tree)


def test_what_fits_together_is_not_stale(files: dict[str, bytes]):
    assert stale(files) == {}


def test_changed_code_makes_its_stage_stale_and_all_that_come_after(files: dict[str, bytes]):
    assert stale({**files, "make.py": b"other"}) == {
        "make": ["make.py has changed"],
        "evaluate@student": ["make is stale"],
        "report": ["evaluate@student is stale"],
    }
    assert list(stale({**files, "score.py": b"other"})) == ["evaluate@student", "report"]


def test_code_that_is_gone_has_changed(files: dict[str, bytes]):
    assert stale({path: content for path, content in files.items() if path != "score.py"})["evaluate@student"] == [
        "score.py has changed"
    ]


@pytest.mark.parametrize(
    ("knobs", "stages"),
    [
        ({"seed": 1, "make": {"length": 8, "stop": ""}, "evaluate": {"limit": 3}}, {"make"}),
        ({"seed": 0, "make": {"length": 9, "stop": ""}, "evaluate": {"limit": 3}}, {"make"}),
        ({"seed": 0, "make": {"length": 8, "stop": ""}, "evaluate": {"limit": 3}, "more": {"a": 1}}, set()),
        ({"seed": 0, "make": {"length": 8, "stop": ""}, "evaluate": {}}, {"evaluate@student"}),
    ],
)
def test_a_changed_knob_makes_the_stages_stale_that_read_it(files: dict[str, bytes], knobs: dict, stages: set[str]):
    stale_stages = stale({**files, "params.yaml": yaml.safe_dump(knobs).encode()})
    assert {stage for stage, reasons in stale_stages.items() if any("knob" in reason for reason in reasons)} == stages


def test_a_knob_that_came_into_a_section_which_a_stage_reads_makes_it_stale(files: dict[str, bytes]):
    knobs = {"seed": 0, "make": {"length": 8, "stop": "", "top": {"k": 5}}, "evaluate": {"limit": 3}, "makeup": 1}
    stale_stages = stale({**files, "params.yaml": yaml.safe_dump(knobs).encode()})
    assert stale_stages["make"] == ["the knob make.top.k has changed"]


def test_a_knob_of_nothing_is_not_a_knob_that_is_gone(files: dict[str, bytes]):
    lock = lock_of(files)
    lock["stages"]["make"]["params"]["params.yaml"]["make"]["stop"] = None
    written = yaml.safe_dump(lock).encode()
    knobs = {"seed": 0, "make": {"length": 8, "stop": None}, "evaluate": {"limit": 3}}
    assert stale({**files, "dvc.lock": written, "params.yaml": yaml.safe_dump(knobs).encode()}) == {}
    del knobs["make"]["stop"]
    assert stale({**files, "dvc.lock": written, "params.yaml": yaml.safe_dump(knobs).encode()})["make"] == [
        "the knob make.stop has changed"
    ]


def test_data_that_dvc_has_taken_out_of_git_is_known_by_its_dvc_file(files: dict[str, bytes]):
    """A commit has the .dvc file alone; in the working tree the data itself counts."""
    lock = lock_of(files)
    lock["stages"]["make"]["deps"].append({"path": "mine.jsonl", "hash": "md5", "md5": digest(b"mine")})
    there = {**files, "dvc.lock": yaml.safe_dump(lock).encode()}
    pointer = {"outs": [{"md5": digest(b"mine"), "size": 4, "hash": "md5", "path": "mine.jsonl"}]}
    there["mine.jsonl.dvc"] = yaml.safe_dump(pointer).encode()
    assert stale(there) == {}
    assert stale({**there, "mine.jsonl": b"other"})["make"] == ["mine.jsonl has changed"]
    pointer["outs"][0]["md5"] = digest(b"other")
    assert stale({**there, "mine.jsonl.dvc": yaml.safe_dump(pointer).encode()})["make"] == ["mine.jsonl has changed"]
    assert stale({**there, "mine.jsonl.dvc": b"[]"})["make"] == ["mine.jsonl has changed"]


def test_another_pinned_version_makes_the_stages_stale_that_depend_on_it(files: dict[str, bytes]):
    assert stale({**files, "versions.yaml": b'torch: "2.1"'})["make"] == ["torch is pinned to 2.1, it ran with 2.0"]
    assert stale({**files, "versions.yaml": b'torch: "2.0"\nscipy: "1.0"'}) == {}
    without = {path: content for path, content in files.items() if path != "versions.yaml"}
    assert stale(without)["make"] == ["torch is pinned to nothing, it ran with 2.0"]


@pytest.mark.parametrize("name", ["params.yaml", "versions.yaml"])
def test_knobs_or_pins_that_are_no_mapping_are_named(files: dict[str, bytes], name: str):
    with pytest.raises(ValueError, match=f"{name}: expected a mapping, got"):
        stale({**files, name: b"[1]"})
    assert "make" in stale({**files, name: b"{}"})


def test_several_commands_are_one_text(files: dict[str, bytes]):
    lock = lock_of(files)
    lock["stages"]["make"]["cmd"] = ["first", "make --environment data/ran.json"]
    stage = locks.load(Memory({**files, "dvc.lock": yaml.safe_dump(lock).encode()})).stages["make"]
    assert (stage.cmd, stage.environment) == ("first\nmake --environment data/ran.json", "data/ran.json")


def test_the_record_of_what_a_stage_ran_with_is_none_of_what_it_made(files: dict[str, bytes]):
    stage = locks.load(Memory(files)).stages["make"]
    assert stage.environment == "data/ran.json"
    assert [*stage.made] == ["data/corpus"]
    assert [*stage.outs] == ["data/corpus", "data/ran.json"]


def test_a_number_that_dvc_writes_its_own_way_is_the_same_number(files: dict[str, bytes]):
    """dvc.lock has 1e-05 where params.yaml has 1.0e-5; an md5 that looks like a number is in quotes there."""
    knobs = files["params.yaml"].replace(b"length: 8", b"length: 1.0e-5")
    lock = files["dvc.lock"].replace(b"length: 8", b"length: 1e-05")
    assert stale({**files, "params.yaml": knobs, "dvc.lock": lock}) == {}
    assert locks.parsed(b"[1e-05, 1E5, -2.5e3, '30e12', 12, 0x1f, abc, 1e]") == [
        1e-5,
        1e5,
        -2500,
        "30e12",
        12,
        31,
        "abc",
        "1e",
    ]


def test_what_another_run_made_is_named(files: dict[str, bytes]):
    """A stage ran again, and what reads from it did not."""
    lock = lock_of(files)
    lock["stages"]["make"]["outs"][0]["md5"] = "e" * 32 + ".dir"
    stale_stages = stale({**files, "dvc.lock": yaml.safe_dump(lock).encode()})
    assert stale_stages["evaluate@student"] == ["data/corpus is not what make made"]
    assert "make" not in stale_stages


def test_a_chain_goes_down_to_what_needs_nothing_more(files: dict[str, bytes]):
    links = list(locks.load(Memory(files)).chain("data/report/summary.json"))
    assert [(link.depth, link.path, link.maker.name) for link in links] == [
        (0, "data/report/summary.json", "report"),
        (1, "data/scores/student.json", "evaluate@student"),
        (2, "data/corpus", "make"),
    ]


def test_a_project_that_never_ran_has_no_stages():
    assert locks.load(Memory({})).stages == {}


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"stages: 3", b"stages: {a: {deps: []}}", b"stages: {a: {cmd: x, outs: [1]}}"]
)
def test_a_damaged_lock_is_named_with_the_way_out(content: bytes):
    with pytest.raises(ValueError, match=r"dvc\.lock is damaged .*git restore dvc\.lock"):
        locks.load(Memory({"dvc.lock": content}))
